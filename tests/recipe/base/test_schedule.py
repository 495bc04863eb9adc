"""The learning rate over the tokens of a run."""

from __future__ import annotations

import pytest

from recipe.base.schedule import learning_rate
from recipe.base.settings import Schedule

COSINE = Schedule(total_tokens=1000, peak_lr=1.0, min_lr=0.1, warmup_tokens=100)
WSD = Schedule(total_tokens=1000, kind="wsd", peak_lr=1.0, min_lr=0.1, warmup_tokens=100, decay_tokens=200)


@pytest.mark.parametrize("schedule", [COSINE, WSD])
def test_warmup_is_linear_and_the_end_is_min_lr(schedule):
    assert learning_rate(schedule, 50) == pytest.approx(0.5)
    assert learning_rate(schedule, 100) == 1.0
    assert learning_rate(schedule, 1000) == pytest.approx(0.1)
    assert learning_rate(schedule, 5000) == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle():
    assert learning_rate(COSINE, 550) == pytest.approx(0.55)


def test_wsd_is_flat_until_its_decay_and_linear_in_it():
    assert learning_rate(WSD, 800) == 1.0
    assert learning_rate(WSD, 900) == pytest.approx(0.55)


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(COSINE.model_copy(update={"warmup_tokens": 0}), 0) == 1.0
