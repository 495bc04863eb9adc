"""Agreement with labels and thresholds, on cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.quality.agreement import agreement, auc, threshold_of_precision, threshold_of_share

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
GOOD = np.array([True, True, False, True, False, False])


def test_agreement_counts_what_is_kept():
    assert agreement(SCORES, GOOD, 0.7) == {
        "documents": 6,
        "good": 3,
        "kept": 3,
        "accuracy": pytest.approx(4 / 6),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "auc": pytest.approx(8 / 9),
    }


def test_a_threshold_that_keeps_nothing_has_no_precision():
    assert agreement(SCORES, GOOD, 0.95)["precision"] is None
    assert agreement(SCORES, GOOD, 0.95)["recall"] == 0


def test_equal_scores_are_half_a_pair():
    assert auc(np.array([0.5, 0.5, 0.5, 0.9]), np.array([True, False, False, False])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("precision", "threshold"), [(1.0, 0.8), (0.75, 0.6), (0.5, 0.4)], ids=["all", "three-quarters", "half"]
)
def test_the_lowest_threshold_of_a_precision(precision, threshold):
    assert threshold_of_precision(SCORES, GOOD, precision) == threshold


def test_a_threshold_does_not_cut_through_equal_scores():
    scores, good = np.array([0.9, 0.8, 0.8, 0.8]), np.array([True, True, False, False])
    assert threshold_of_precision(scores, good, 0.9) == 0.9


def test_a_precision_that_no_threshold_has():
    assert threshold_of_precision(SCORES, ~GOOD, 0.9) is None


@pytest.mark.parametrize(
    ("share", "kept"), [(0.01, 1), (0.5, 3), (0.51, 4), (1.0, 6)], ids=["one", "half", "more-than-half", "all"]
)
def test_a_threshold_keeps_a_share(share, kept):
    assert np.count_nonzero(threshold_of_share(SCORES, share) <= SCORES) == kept
