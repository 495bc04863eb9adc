"""The laws of all held-out sources over the same proxy runs: how well they predict runs that they have not seen, and intervals.

An interval is a bootstrap over the proxies: residuals of whole runs are drawn anew, so that what all losses of a run share
stays together, and the laws are fitted again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from recipe.scaling.interval import LEVEL, Prediction
from recipe.scaling.mixture.law import Fit, Floats, fit, numbers, refit

DRAWS = 200


@dataclass(frozen=True)
class Quality:
    """How a law predicts runs that are left out of its fit, one after the other.

    Args:
        rank_correlation: Spearman's, of predicted and measured losses.
        error: root mean square of the predicted log loss over the measured one.
        error_of_mean: the same where the mean of the other runs is the prediction.
    """

    rank_correlation: float
    error: float
    error_of_mean: float

    @property
    def predicts(self) -> bool:
        return self.error < self.error_of_mean

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Regression:
    """Fitted laws by held-out source, and their runs.

    Args:
        shares_RS: of each run the shares of all sources.
        losses: of each held-out source the runs' losses, bits per byte or nats.
    """

    shares_RS: Floats
    losses: Mapping[str, Floats]
    fits: Mapping[str, Fit]

    @property
    def spare_runs(self) -> int:
        runs, sources = self.shares_RS.shape
        return runs - numbers(sources)

    def predicted(self, source: str, shares_S: Floats) -> float:
        return self.fits[source].law.loss(shares_S)

    def objective(self, weights: Mapping[str, float], shares_S: Floats) -> float:
        """A weighted mean of losses, at a mixture."""
        return sum(weight * self.predicted(source, shares_S) for source, weight in weights.items())

    def gradient(self, weights: Mapping[str, float], shares_S: Floats) -> Floats:
        """Of the objective by the shares."""
        return np.sum([weight * self.fits[s].law.gradient(shares_S) for s, weight in weights.items()], axis=0)

    def redrawn(self, rng: np.random.Generator) -> Regression:
        """The laws of other losses of the same runs, drawn around these laws."""
        runs = rng.integers(len(self.shares_RS), size=len(self.shares_RS))
        losses = {s: f.law.losses(self.shares_RS) * np.exp(f.residuals[runs]) for s, f in self.fits.items()}
        fits = {s: refit(f.law, self.shares_RS, losses[s]) for s, f in self.fits.items()}
        return Regression(self.shares_RS, losses, fits)

    def qualities(self, weights: Mapping[str, float]) -> tuple[dict[str, Quality], Quality]:
        """Of each held-out source, and of their weighted mean."""
        predicted = {s: _left_out(f, self.shares_RS, self.losses[s]) for s, f in self.fits.items()}
        each = {s: _quality(p, self.losses[s]) for s, p in predicted.items()}
        mean, measured = (sum(w * of[s] for s, w in weights.items()) for of in (predicted, self.losses))
        return each, _quality(np.asarray(mean), np.asarray(measured))


def regression_of(shares_RS: Floats, losses: Mapping[str, Floats]) -> Regression:
    """The laws of measured runs.

    Raises:
        UserError: too few runs.
    """
    return Regression(shares_RS, losses, {source: fit(shares_RS, values) for source, values in losses.items()})


def redraws(regression: Regression, draws: int = DRAWS, seed: int = 0) -> list[Regression]:
    """The bootstrap's fits, which all intervals of a regression rest on."""
    rng = np.random.default_rng(seed)
    return [regression.redrawn(rng) for _ in range(draws)]


def predict(
    regression: Regression,
    again: list[Regression],
    source: str,
    shares_S: Floats,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Prediction:
    """The loss of a new run of a mixture, with the interval in which it will be.

    The new run's distance from the refitted law counts in units of the refit's own noise, as in recipe/scaling/interval.py.
    """
    rng, fitted = np.random.default_rng(seed), regression.fits[source]
    value = fitted.law.loss(shares_S)
    refits = [other.fits[source] for other in again]
    new = np.log(value) + rng.choice(fitted.residuals, len(again))
    distances = [(run - np.log(other.law.loss(shares_S))) / other.noise for run, other in zip(new, refits, strict=True)]
    low, high = value * np.exp(fitted.noise * np.quantile(distances, [(1 - level) / 2, (1 + level) / 2]))
    return Prediction(value, float(low), float(high), level)


def _left_out(fitted: Fit, shares_RS: Floats, losses_R: Floats) -> Floats:
    """The prediction of each run by a law of the others."""
    others = ~np.eye(len(losses_R), dtype=bool)
    laws = [refit(fitted.law, shares_RS[other], losses_R[other]).law for other in others]
    return np.array([law.loss(shares_S) for law, shares_S in zip(laws, shares_RS, strict=True)])


def _quality(predicted_R: Floats, measured_R: Floats) -> Quality:
    logs, runs = np.log(measured_R), len(measured_R)
    mean_of_others = (logs.sum() - logs) / (runs - 1)
    rank = float(spearmanr(predicted_R, measured_R).statistic)
    return Quality(rank, _rms(np.log(predicted_R) - logs), _rms(mean_of_others - logs))


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))
