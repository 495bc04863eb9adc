"""The law's arithmetic, and what a model's size is in it."""

from __future__ import annotations

import pytest

from recipe.base.model_shape import load_model_shape
from recipe.scaling.law import Law, Size, size_of
from tests.conftest import ROOT


def test_the_law_of_chinchilla_says_the_loss_of_chinchilla():
    # arXiv 2203.15556, appendix D.3, equation 10, at 70B parameters and 1.4T tokens: 1.69 + 0.083 + 0.163
    law = Law(1.69, 406.4, 0.34, 410.7, 0.28)
    assert law.loss(Size(70e9, 1.0, 1.4e12)) == pytest.approx(1.936, abs=0.002)


def test_experts_that_a_token_does_not_pass_are_worth_their_kappa():
    dense, sparse = Size(1e8, 1.0, 1e10), Size(1e8, 0.25, 1e10)
    worthless, full = (Law(1.0, 100.0, 0.3, 100.0, 0.3, kappa) for kappa in (0.0, 1.0))
    assert worthless.loss(sparse) == worthless.loss(dense)
    assert full.loss(sparse) == pytest.approx(full.loss(Size(4e8, 1.0, 1e10)))


def test_the_size_of_a_model_is_what_multiplies_for_a_token():
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny")
    size = size_of(shape, 600_000)
    assert size.share == 3 / 9  # 2 of 8 routed experts, and the shared one
    seq_length_zero = shape.training_flops_per_token(0)
    assert 6 * size.active == seq_length_zero
