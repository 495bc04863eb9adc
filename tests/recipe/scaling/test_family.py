"""Small models of a family keep its proportions."""

from __future__ import annotations

import pytest

from recipe.base.errors import UserError
from recipe.base.model_shape import load_model_shape
from recipe.scaling.family import member
from recipe.scaling.law import size_of
from tests.conftest import ROOT

TARGETS = ("tiny", "1b-a0.3b", "30b-a3b")


@pytest.fixture(params=TARGETS)
def target(request):
    return load_model_shape(ROOT / "recipe/configs/models" / request.param)


def test_the_target_is_a_member_of_its_family(target):
    assert member(target, target.hidden_size) == target


def test_every_member_is_sound_and_keeps_the_active_share(target):
    for width in range(32, target.hidden_size + 1, 32):
        small = member(target, width)
        assert small.problems() == []
        assert size_of(small, 1).share == size_of(target, 1).share
        assert small.num_attention_heads // small.num_key_value_heads == (
            target.num_attention_heads // target.num_key_value_heads
        )


def test_members_grow_with_the_width(target):
    sizes = [size_of(member(target, width), 1).active for width in range(32, target.hidden_size + 1, 32)]
    assert sizes == sorted(set(sizes))


def test_a_width_that_makes_no_model_is_refused(target):
    for width in (33, target.hidden_size + 8):
        with pytest.raises(UserError, match="is no multiple of 8 up to the target's hidden_size"):
            member(target, width)
