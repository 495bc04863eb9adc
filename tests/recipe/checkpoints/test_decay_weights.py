"""Merge weights stand for the decay that they are named after, as in arXiv 2507.17634."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest

from recipe.base.errors import UserError
from recipe.checkpoints.decay_weights import DECAYS, INTEGRALS, decay_weights, given_weights

RATES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "one_minus_sqrt": lambda x: 1 - math.sqrt(x),
}
UNEVEN = [1000, 1300, 2000, 2100, 3000]


def rates_of(weights: list[float]) -> list[float]:
    """What the updates of each interval count: w_i = c_i + ... + c_k."""
    return list(accumulate(reversed(weights[1:])))[::-1]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [[0, 1], [5, 10, 15, 20], UNEVEN], ids=["two", "even", "uneven"])
def test_weights_are_positive_and_sum_to_one(decay, tokens):
    weights = decay_weights(decay, tokens)
    assert len(weights) == len(tokens)
    assert all(weight > 0 for weight in weights)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("decay", list(RATES))
def test_updates_of_an_interval_count_what_the_decay_is_there_on_average(decay):
    span = UNEVEN[-1] - UNEVEN[0]
    for rate, (begin, end) in zip(rates_of(decay_weights(decay, UNEVEN)), pairwise(UNEVEN), strict=True):
        places = [(begin + (number + 0.5) / 2000 * (end - begin) - UNEVEN[0]) / span for number in range(2000)]
        assert rate == pytest.approx(sum(map(RATES[decay], places)) / len(places), abs=1e-5)


@pytest.mark.parametrize("decay", list(INTEGRALS))
def test_a_decay_falls_from_one_to_zero(decay):
    steps = [number * 7 for number in range(500)]
    rates = rates_of(decay_weights(decay, steps))
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1, abs=0.03)
    assert rates[-1] == pytest.approx(0, abs=0.002)


def test_closed_forms_of_equal_intervals():
    assert decay_weights("mean", [1, 2, 3, 9]) == [0.25] * 4
    assert rates_of([0.25] * 4) == [0.75, 0.5, 0.25]  # a line, one interval longer than the checkpoints
    assert decay_weights("linear", [0, 10, 20, 30, 40]) == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8])
    k = 4
    sines = [math.sin(math.pi * j / k) for j in range(k + 1)]
    rates = [1.0, *(0.5 + k * (sines[i] - sines[i - 1]) / (2 * math.pi) for i in range(1, k + 1)), 0.0]
    expected = [before - after for before, after in pairwise(rates)]
    assert decay_weights("cosine", [0, 1, 2, 3, 4]) == pytest.approx(expected)


def test_checkpoints_of_the_same_tokens_have_no_decay_between_them():
    with pytest.raises(UserError, match=r"--decay mean, or give --weights"):
        decay_weights("linear", [10, 10, 20])
    assert decay_weights("mean", [10, 10]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [([1.0], "1 numbers for 2"), ([1.0, 0.0], "above zero"), ([1.0, math.nan], "above zero")],
    ids=["too few", "zero", "not a number"],
)
def test_given_weights_are_refused(weights, problem):
    with pytest.raises(UserError, match=problem):
        given_weights(weights, 2)


def test_given_weights_are_proportions():
    assert given_weights([1, 3], 2) == [0.25, 0.75]
