"""Standard errors of means, ratios and differences, beside resampling and the plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipe.evaluation.downstream.estimates import difference, mean, mean_of_scores, ratio_of_sums

RANDOM = np.random.default_rng(0)
BYTES_N = RANDOM.integers(4, 40, 400).astype(float)
BITS_N = BYTES_N * RANDOM.normal(1.5, 0.4, 400)


def resampled(statistic) -> float:
    """The standard deviation of a statistic over samples of the items with replacement."""
    random = np.random.default_rng(1)
    return float(np.std([statistic(random.integers(0, 400, 400)) for _ in range(2000)]))


def test_a_mean_has_the_error_of_the_textbook():
    found = mean(np.array([0.0, 1.0, 1.0, 0.0]))
    assert (found.value, found.stderr) == (0.5, pytest.approx(math.sqrt((1 / 3) / 4)))


def test_the_error_of_bits_per_byte_is_that_of_resampling():
    found = ratio_of_sums(BITS_N, BYTES_N)
    assert found.value == pytest.approx(BITS_N.sum() / BYTES_N.sum())
    bootstrap = resampled(lambda rows: BITS_N[rows].sum() / BYTES_N[rows].sum())
    assert found.stderr == pytest.approx(bootstrap, rel=0.06)


def test_pairing_leaves_the_error_of_what_differs():
    harder_N = BITS_N + RANDOM.normal(2.0, 0.5, 400)
    one, other = ratio_of_sums(harder_N, BYTES_N), ratio_of_sums(BITS_N, BYTES_N)
    paired, apart = difference(one, other, paired=True), difference(one, other, paired=False)
    bootstrap = resampled(lambda rows: (harder_N[rows].sum() - BITS_N[rows].sum()) / BYTES_N[rows].sum())
    assert paired["value"] == apart["value"] == pytest.approx(one.value - other.value)
    assert paired["stderr"] == pytest.approx(bootstrap, rel=0.06)
    assert apart["stderr"] == pytest.approx(math.hypot(one.stderr, other.stderr))
    assert paired["stderr"] < apart["stderr"] / 3


def test_a_single_item_has_no_error():
    single = mean(np.array([1.0]))
    assert single.as_json() == {"value": 1.0, "stderr": None}
    assert difference(single, single, paired=False)["stderr"] is None


def test_a_group_weighs_its_tasks_alike():
    scores = [{"value": 1.0, "stderr": 0.3}, {"value": 2.0, "stderr": 0.4}]
    assert mean_of_scores(scores) == {"value": 1.5, "stderr": pytest.approx(0.25)}
    assert mean_of_scores([*scores, {"value": 3.0, "stderr": None}]) == {"value": 2.0, "stderr": None}
