"""Runs of a ladder follow the published rules, in whole steps."""

from __future__ import annotations

import pytest

from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.schedule import Schedule
from recipe.scaling.rungs import LARGEST_LR, optimal_batch_tokens, optimal_lr, rungs
from tests.conftest import ROOT


def test_batch_and_learning_rate_are_those_of_step_law():
    # arXiv 2503.04715, the law of its abstract at 1B parameters and 100B tokens
    assert optimal_lr(1e9, 1e11) == pytest.approx(1.79 * 10 ** (-9 * 0.713 + 11 * 0.307))
    assert optimal_batch_tokens(1e11) == pytest.approx(1.11e6, rel=0.01)
    assert optimal_lr(1e5, 1e6) == LARGEST_LR


def test_every_width_runs_with_every_ratio_in_whole_steps():
    target = load_model_shape(ROOT / "recipe/configs/models/tiny")
    ladder = rungs(target, [64, 32], [10, 40], 128, ranks=2)
    assert [rung.name for rung in ladder] == ["w32-t10", "w32-t40", "w64-t10", "w64-t40"]
    for rung in ladder:
        assert rung.batch_sequences % 2 == 0
        assert rung.tokens % (rung.batch_sequences * 128) == 0
        assert Schedule.model_validate(rung.schedule()).problems() == []
        assert rung.flops == rung.tokens * rung.shape.training_flops_per_token(128)
        assert rung.tokens / rung.size.active == pytest.approx(float(rung.name.split("t")[1]), rel=0.02)


def test_numbers_of_experts_vary_the_active_share_alone():
    target = load_model_shape(ROOT / "recipe/configs/models/tiny")
    ladder = rungs(target, [32], [10], 128, ranks=1, experts=[16, 8])
    assert [rung.name for rung in ladder] == ["w32-t10-e8", "w32-t10-e16"]
    assert [rung.size.share for rung in ladder] == [3 / 9, 3 / 17]
    assert ladder[0].size.active == pytest.approx(ladder[1].size.active, rel=0.01)  # a router has a row for each expert


def test_a_measured_learning_rate_goes_with_one_over_the_width():
    target = load_model_shape(ROOT / "recipe/configs/models/tiny")
    ladder = rungs(target, [32, 64], [10], 128, ranks=1, lr_times_width=0.2)
    assert [rung.lr for rung in ladder] == pytest.approx([0.2 / 32, 0.2 / 64], rel=0.01)
