"""The interval in which a new run's loss will be, by a bootstrap over the runs of a fit.

Losses are drawn anew around the fitted law with the noise of its residuals, the law is fitted to them again, and a new run
is drawn too. What counts is the new run's distance from the refitted law in units of the refit's own noise (the
bootstrap-t: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 12): with few runs it is as wide as
Student's t. The interval covers noise and the uncertainty of the fitted parameters. It does not cover that the form, or an
exponent that was fixed, may be wrong far from the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.scaling.fit import Fit, refit
from recipe.scaling.law import Size

LEVEL = 0.9  # of an interval: the share of new runs whose loss it holds
DRAWS = 200


@dataclass(frozen=True)
class Prediction:
    """The loss of a run that was not measured."""

    value: float
    low: float
    high: float
    level: float

    def times(self, factor: float) -> Prediction:
        """The same in another unit."""
        return Prediction(self.value * factor, self.low * factor, self.high * factor, self.level)

    def holds(self, loss: float) -> bool:
        return self.low <= loss <= self.high

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def predict(
    fitted: Fit, targets: Sequence[Size], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> list[Prediction]:
    """The losses of runs of these sizes."""
    rng = np.random.default_rng(seed)
    at_runs, at_targets = fitted.law.losses(list(fitted.sizes)), fitted.law.losses(list(targets))
    distances = np.empty((draws, len(targets)))
    for draw in range(draws):
        again = refit(fitted, at_runs * np.exp(fitted.noise * rng.standard_normal(len(at_runs))))
        new = at_targets * np.exp(fitted.noise * rng.standard_normal(len(at_targets)))
        distances[draw] = np.log(new / again.law.losses(list(targets))) / again.noise
    tail = (1 - level) / 2
    low, high = at_targets * np.exp(fitted.noise * np.quantile(distances, [tail, 1 - tail], axis=0))
    return [
        Prediction(v, a, b, level) for v, a, b in zip(at_targets.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
