"""Means and ratios over the items of a task, with standard errors, of single values and of differences.

Letters in shapes: N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.base.tables import ratio

Score = dict[str, Any]  # value, and stderr, which may be None


@dataclass(frozen=True)
class Estimate:
    """A value estimated from N items.

    Args:
        influence_N: how far each item moves the value, times N; their mean is 0. For a mean it is the item minus the mean.
    """

    value: float
    influence_N: np.ndarray

    @property
    def stderr(self) -> float | None:
        """None for a single item, which says nothing of the others."""
        items = len(self.influence_N)
        return float(self.influence_N.std(ddof=1)) / math.sqrt(items) if items > 1 else None

    def as_json(self) -> Score:
        return {"value": self.value, "stderr": self.stderr}


def mean(values_N: np.ndarray) -> Estimate:
    value = float(values_N.mean())
    return Estimate(value, values_N - value)


def ratio_of_sums(over_N: np.ndarray, under_N: np.ndarray) -> Estimate:
    """The sum of one quantity over the sum of another, such as bits over bytes.

    The standard error is the ratio estimator's (Cochran, Sampling Techniques, 3rd edition, section 6.3), from the residuals
    over_i - value * under_i.
    """
    value = ratio(float(over_N.sum()), float(under_N.sum()))
    mean_under = float(under_N.mean())
    return Estimate(value, (over_N - value * under_N) / mean_under if mean_under else np.full(len(over_N), math.nan))


def difference(one: Estimate, other: Estimate, *, paired: bool) -> Score:
    """`one` minus `other` with its standard error.

    Args:
        paired: item i of both is the same question. What makes a question hard for both then cancels.
    """
    value = one.value - other.value
    if paired:
        return Estimate(value, one.influence_N - other.influence_N).as_json()
    errors = (one.stderr, other.stderr)
    known = [error for error in errors if error is not None]
    return {"value": value, "stderr": math.hypot(*known) if len(known) == len(errors) else None}


def mean_of_scores(scores: Sequence[Score]) -> Score:
    """The mean over tasks, each with the same weight; their errors are independent, since tasks share no items."""
    values, errors = [score["value"] for score in scores], [score["stderr"] for score in scores]
    known = [error for error in errors if error is not None]
    stderr = math.hypot(*known) / len(scores) if len(known) == len(errors) else None
    return {"value": float(np.mean(values)), "stderr": stderr}
