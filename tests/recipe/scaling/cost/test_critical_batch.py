"""The price of a batch: its rules are those of published steps, and phases are priced as one run is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from recipe.scaling.cost.critical_batch import (
    PUBLISHED,
    REFITTED,
    REFITTED_FREELY,
    RULES,
    batch_price,
    tokens_factor,
    worth,
    worth_span,
)
from recipe.scaling.rungs import optimal_batch_tokens

STEPS = np.loadtxt(Path(__file__).with_name("zhang_steps.txt"))
BATCHES = 512.0 * 2 ** np.arange(6, 15)


def critical(steps: np.ndarray) -> float:
    """B_crit of 1 + B / B_crit, by the least squares of log tokens."""
    logs = np.log(steps * BATCHES)

    def squares(position: np.ndarray) -> float:
        return float(np.sum((logs - position[0] - np.log1p(BATCHES / np.exp(position[1]))) ** 2))

    solved = minimize(squares, [logs.min(), np.log(1e6)], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    return float(np.exp(solved.x[1]))


@pytest.fixture(scope="module")
def measured():
    """Tokens of the five sizes, and B_crit of each."""
    return STEPS[:, 1] * 256 * 512, np.array([critical(steps) for steps in STEPS[:, 2:]])


def test_the_refitted_rules_are_those_of_the_published_steps(measured):
    tokens, found = measured
    exponent, intercept = np.polyfit(np.log(tokens), np.log(found), 1)
    assert exponent == pytest.approx(REFITTED_FREELY.exponent, abs=0.001)
    assert np.exp(intercept + exponent * np.log(1e12)) == pytest.approx(REFITTED_FREELY.at_1t, rel=0.01)
    fixed = np.mean(np.log(found) - REFITTED.exponent * np.log(tokens / 1e12))
    assert np.exp(fixed) == pytest.approx(REFITTED.at_1t, rel=0.01)


def test_the_published_rule_is_somewhat_cheaper_than_the_steps_of_its_models(measured):
    ratios = [PUBLISHED.of(tokens) / found for tokens, found in zip(*measured, strict=True)]
    assert ratios == sorted(ratios, reverse=True)
    assert 1.15 < ratios[-1] < ratios[0] < 1.75


def test_kaplans_rule_is_far_below_the_same_steps(measured):
    losses = (3.42, 3.24, 3.07, 2.92, 2.736)  # to which the steps lead
    ratios = [2.1e8 * loss**-4.8 / found for loss, found in zip(losses, measured[1], strict=True)]
    assert all(0.25 < ratio < 0.51 for ratio in ratios)


@pytest.mark.parametrize("rule", RULES)
def test_at_the_critical_batch_a_loss_takes_twice_the_tokens_of_small_batches(rule):
    assert rule.needed(1e12, rule.at_1t) == pytest.approx(2e12)
    usual = optimal_batch_tokens(1e12)
    ratio = (1 + rule.at_1t / rule.at_1t) / (1 + usual / rule.at_1t)
    assert tokens_factor(rule, rule.at_1t, 1e12) == pytest.approx(ratio)


def test_a_batch_is_priced_from_the_ladders_own_on_and_more_tokens_make_it_cheaper():
    usual = optimal_batch_tokens(1e12)
    assert vars(batch_price(0.1 * usual, 1e12)) == {"value": 1.0, "low": 1.0, "high": 1.0}
    small, large = batch_price(2 * usual, 1e12), batch_price(8 * usual, 1e12)
    assert 1 < small.low < small.value < small.high < large.value
    assert batch_price(8 * usual, 1e13).value < large.value


def test_phases_of_one_batch_are_worth_as_much_as_one_run_of_it():
    needed = PUBLISHED.needed(3e11, 1.7e7)
    assert worth(PUBLISHED, [(needed, 1.7e7)]) == pytest.approx(3e11)
    assert worth(PUBLISHED, [(0.2 * needed, 1.7e7), (0.8 * needed, 1.7e7)]) == pytest.approx(3e11)


def test_a_small_batch_is_worth_more_at_the_beginning_than_at_the_end():
    first, last = ([(2e11, 4e6), (8e11, 3e7)], [(8e11, 3e7), (2e11, 4e6)])
    assert worth_span(last).value < worth_span(first).value < 1e12
    span = worth_span(first)
    assert span.low < span.value < span.high
