"""The mixture that a regression proposes: the least weighted mean of losses within what the sources can give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm, t

from recipe.scaling.interval import LEVEL, Prediction
from recipe.scaling.mixture.law import Floats
from recipe.scaling.mixture.regression import Regression

LEAST_SHARE = 1e-5  # in place of 0, where the laws are steep without end


@dataclass(frozen=True)
class Proposal:
    """Shares with intervals, and what they gain.

    Args:
        shares: one for each source.
        gain: of the objective, over another mixture.
    """

    shares: tuple[Prediction, ...]
    gain: Prediction

    @property
    def shares_S(self) -> Floats:
        return np.array([share.value for share in self.shares])


def best_shares(regression: Regression, weights: Mapping[str, float], caps_S: Floats) -> Floats:
    """The mixture of the least objective; no share is above its cap.

    Args:
        weights: of the held-out sources in the objective.
        caps_S: their sum is 1 or more.
    """
    scale = regression.objective(weights, caps_S / caps_S.sum())
    result = minimize(
        lambda shares_S: regression.objective(weights, shares_S) / scale,
        caps_S / caps_S.sum(),
        jac=lambda shares_S: regression.gradient(weights, shares_S) / scale,
        method="SLSQP",
        bounds=[(min(LEAST_SHARE, cap), cap) for cap in caps_S],
        constraints={"type": "eq", "fun": lambda shares_S: shares_S.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert result.success, result.message
    shares_S = np.where(result.x <= 2 * LEAST_SHARE, 0.0, result.x)
    return np.asarray(shares_S / shares_S.sum())


def propose(
    regression: Regression, again: Sequence[Regression], weights: Mapping[str, float], caps_S: Floats, other_S: Floats,
    *, level: float = LEVEL,
) -> Proposal:  # fmt: skip
    """The proposed mixture, with the intervals that the bootstrap's fits give.

    Args:
        other_S: the mixture that the gain is over.
    """
    shares_S = best_shares(regression, weights, caps_S)
    drawn_BS = np.array([best_shares(each, weights, caps_S) for each in again])
    gains_B = np.array([_gain(each, weights, shares_S, other_S) for each in again])
    tail = (1 + level) / 2
    wider = float(t.ppf(tail, regression.spare_runs) / norm.ppf(tail))  # the noise is known from few runs
    shares = [_interval(*pair, level, wider) for pair in zip(shares_S, drawn_BS.T, strict=True)]
    inside = [replace(share, low=max(0.0, share.low), high=min(1.0, share.high)) for share in shares]
    return Proposal(tuple(inside), _interval(_gain(regression, weights, shares_S, other_S), gains_B, level, wider))


def _gain(regression: Regression, weights: Mapping[str, float], shares_S: Floats, other_S: Floats) -> float:
    return regression.objective(weights, other_S) - regression.objective(weights, shares_S)


def _interval(value: float, drawn_B: Floats, level: float, wider: float) -> Prediction:
    low, high = value + wider * (np.quantile(drawn_B, [(1 - level) / 2, (1 + level) / 2]) - value)
    return Prediction(float(value), float(low), float(high), level)
