"""Published rules give the values that their sources print, and those that published runs were trained with."""

from __future__ import annotations

import math
from statistics import median

import pytest

from recipe.base.model_shape import load_model_shape
from recipe.scaling.published_runs import PUBLISHED_RUNS
from recipe.scaling.transfer import (
    DEEPSEEK,
    JOINT_MOE,
    LING,
    RULES,
    STEP_LAW,
    Run,
    at_batch,
    run_of,
    small_initial_std,
    smallest_rotary_base,
    vocabulary_size,
)
from tests.conftest import ROOT


def run_with_flops(flops: float) -> Run:
    return Run(parameters=1e9, sparsity=1.0, tokens=1e11, flops=flops)


def test_a_run_of_a_model_leaves_out_its_vocabulary():
    shape = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
    run = run_of(shape, 1e12, 4096)
    matmuls = 6 * sum(v for k, v in shape.active_parameters().items() if k not in ("embedding", "lm_head", "norm"))
    assert run.parameters == pytest.approx(2.74e9, rel=1e-3)
    assert run.flops == pytest.approx(1e12 * (matmuls + 24 * 6 * 3072 * 4096), rel=1e-9)
    assert run.sparsity == pytest.approx(97 / 7)


@pytest.mark.parametrize("name", ["Ling-mini 2.0", "Ling-flash 2.0", "Ling-1T"])
def test_lings_rule_gives_what_ling_2_was_trained_with(name):
    (published,) = (run for run in PUBLISHED_RUNS if run.name == name)
    run = run_with_flops(published.flops)
    assert LING.learning_rate(run) == pytest.approx(published.learning_rate, rel=0.04)
    assert LING.batch_tokens(run) == pytest.approx(published.batch_tokens, rel=0.13)


def test_lings_rule_is_near_the_runs_of_others():
    """The argument for taking the flagship's numbers from it."""
    others = [run for run in PUBLISHED_RUNS if not run.name.startswith("Ling")]
    rates = [run.learning_rate / LING.learning_rate(run_with_flops(run.flops)) for run in others]
    batches = [run.batch_tokens / LING.batch_tokens(run_with_flops(run.flops)) for run in others]
    assert 0.9 < median(rates) < 1.1
    assert 0.9 < median(batches) < 1.1
    assert all(0.75 < ratio < 1.3 for ratio in rates + batches)


@pytest.mark.parametrize(("billions", "rate", "sequences"), [(6.9, 4.2e-4, 2_304), (67.4, 3.2e-4, 4_608)])
def test_deepseeks_rule_gives_what_its_models_were_trained_with(billions, rate, sequences):
    """arXiv 2401.02954, table 2: 7B and 67B, each on 2T tokens, chosen by the rule."""
    run = run_with_flops(6 * billions * 1e9 * 2e12)
    assert DEEPSEEK.learning_rate(run) == pytest.approx(rate, rel=0.05)
    assert DEEPSEEK.batch_tokens(run) == pytest.approx(sequences * 4_096, rel=0.05)


def test_step_law_rises_with_tokens_and_falls_with_parameters():
    small, large = Run(1e8, 1, 1e10, 6e18), Run(1e9, 1, 1e10, 6e19)
    assert STEP_LAW.learning_rate(small) / STEP_LAW.learning_rate(large) == pytest.approx(10**0.713)
    assert STEP_LAW.batch_tokens(small) == STEP_LAW.batch_tokens(large) == pytest.approx(0.58 * 1e10**0.571)


def test_more_experts_ask_for_a_lower_rate():
    """arXiv 2502.05172, finding 4."""
    dense, sparse = (Run(1e9, sparsity, 1e11, 6e20) for sparsity in (1.0, 16.0))
    assert JOINT_MOE.learning_rate(dense) == pytest.approx(math.exp(8.39) * 1e9**-0.81)
    assert JOINT_MOE.learning_rate(sparse) == pytest.approx(JOINT_MOE.learning_rate(dense) / 2)


def test_rates_follow_the_root_of_the_batch():
    assert at_batch(3e-4, 1e6, 4e6) == pytest.approx(6e-4)


@pytest.mark.parametrize(
    ("hidden", "flops", "thousands"),
    [(3_200, 1.3e21, 39), (4_096, 7.1e21, 62), (5_120, 2.4e22, 83), (6_048, 1.3e23, 142), (8_192, 7.1e23, 212)],
)
def test_vocabularies_are_those_of_the_papers_table(hidden, flops, thousands):
    """arXiv 2407.13623, table 1, approach 1."""
    assert vocabulary_size(hidden, flops) == pytest.approx(1000 * thousands, rel=0.03)


@pytest.mark.parametrize(("length", "base"), [(4_096, 2.7e4), (32_768, 6.4e5), (131_072, 7.8e6), (524_288, 6.4e7)])
def test_rotary_bases_are_near_the_papers_table(length, base):
    """arXiv 2405.14591, table 2; the fit of its figure 1 lies within half of each value."""
    assert 0.5 < smallest_rotary_base(length) / base < 1.5


def test_small_init_is_the_root_of_two_fifths_of_the_width():
    assert small_initial_std(1000) == pytest.approx(0.02)


def test_each_rule_names_its_source_and_range():
    for rule in RULES:
        assert rule.source.startswith("arXiv ")
        assert rule.fitted_on
