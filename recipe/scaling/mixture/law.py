"""The mixture law: a source's held-out loss as a function of the shares of all sources in the training data.

    loss = floor + 1 / sum_j value_j * share_j**exponent

The additive law of Shukor et al. (arXiv 2507.09404) for runs of one size and one number of tokens, whose terms are in the
floor here; with one exponent for all shares instead of one each, since proxy runs are few. value_j says how much a source
teaches about the held-out text. With an exponent up to 1 the law is convex, so that a weighted mean of laws has one minimum.

benchmarks/mixture.py compares it on published runs with the other forms in use: linear (RegMix, arXiv 2407.01492), and
exponential (data mixing laws, arXiv 2403.16952, and Olmix, arXiv 2602.12237).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from recipe.base.errors import UserError

Floats = NDArray[np.float64]

SPARE_RUNS = 2  # beyond the law's numbers, so that residuals say something of the noise
_EXPONENTS = (0.05, 1.0)
_START_FLOORS, _START_EXPONENTS = (0.3, 0.6, 0.9), (0.2, 0.5)  # shares of the smallest loss; of the law's exponent
_LOG_VALUES = 25.0  # how far the logarithm of a value may be from 0
_LEAST = 1e-12  # of a sum of values, so that a mixture without any source of value has a loss


@dataclass(frozen=True)
class MixtureLaw:
    """The law of one held-out source; losses are in the unit that it was fitted in.

    Args:
        values: one for each source of the training data, in their order.
    """

    floor: float
    exponent: float
    values: tuple[float, ...]

    def losses(self, shares_RS: Floats) -> Floats:
        """Of each row of shares."""
        return np.asarray(self.floor + 1 / _worth(shares_RS, self.exponent, np.array(self.values)))

    def loss(self, shares_S: Floats) -> float:
        return float(self.losses(shares_S[None])[0])

    def gradient(self, shares_S: Floats) -> Floats:
        """Of the loss by the shares, which must be above 0."""
        values = np.array(self.values)
        worth = _worth(shares_S[None], self.exponent, values)[0]
        return np.asarray(-values * self.exponent * shares_S ** (self.exponent - 1) / worth**2)

    def as_dict(self) -> dict[str, Any]:
        return {"floor": self.floor, "exponent": self.exponent, "values": list(self.values)}


@dataclass(frozen=True)
class Fit:
    """A law and its residuals.

    Args:
        residuals: of each run, measured over predicted loss as a logarithm, widened for the numbers that were fitted.
    """

    law: MixtureLaw
    residuals: Floats

    @property
    def noise(self) -> float:
        """Standard deviation of a run's log loss around the law."""
        return float(np.sqrt(np.mean(self.residuals**2)))


def numbers(sources: int) -> int:
    """How many numbers a law of so many sources has: their values, the floor and the exponent."""
    return sources + 2


def fewest_runs(sources: int) -> int:
    """Runs that such a law needs."""
    return numbers(sources) + SPARE_RUNS


def fit(shares_RS: Floats, losses_R: Floats) -> Fit:
    """The law of measured runs, by least squares of log losses from several starts.

    Raises:
        UserError: too few runs.
    """
    runs, sources = shares_RS.shape
    if runs < fewest_runs(sources):
        raise UserError(f"{runs} runs are too few for a law of {sources} sources, which needs {fewest_runs(sources)}; add proxies")  # fmt: skip
    problem = _Problem(shares_RS, losses_R)
    return problem.fit(problem.starts())


def refit(law: MixtureLaw, shares_RS: Floats, losses_R: Floats) -> Fit:
    """The law of slightly other runs, beginning at the law that there is."""
    problem = _Problem(shares_RS, losses_R)
    return problem.fit([problem.position(law)])


def _worth(shares_RS: Floats, exponent: float, values_S: Floats) -> Floats:
    return np.maximum(shares_RS**exponent @ values_S, _LEAST)


class _Problem:
    """Unknowns are the floor, the logarithm of the exponent and those of the values."""

    def __init__(self, shares_RS: Floats, losses_R: Floats):
        self._shares_RS, self._losses_R = shares_RS, losses_R
        self._log_shares_RS = np.log(np.where(shares_RS > 0, shares_RS, 1.0))  # of no share: times a power that is 0
        sources, (least, most) = shares_RS.shape[1], np.log(_EXPONENTS)
        self._low = np.array([0.0, least, *[-_LOG_VALUES] * sources])
        self._high = np.array([float(losses_R.min()), most, *[_LOG_VALUES] * sources])

    def starts(self) -> Sequence[Floats]:
        return [self._start(part * self._losses_R.min(), e) for part in _START_FLOORS for e in _START_EXPONENTS]

    def _start(self, floor: float, exponent: float) -> Floats:
        """For a floor and an exponent the values are a linear problem."""
        values, _ = nnls(self._shares_RS**exponent, 1 / (self._losses_R - floor))
        return self.position(MixtureLaw(floor, exponent, tuple(np.maximum(values, 1e-3 * values.max()))))

    def position(self, law: MixtureLaw) -> Floats:
        position = np.array([law.floor, np.log(law.exponent), *np.log(np.maximum(law.values, np.exp(-_LOG_VALUES)))])
        inside = 1e-6 * (self._high - self._low)  # the method starts inside its bounds
        return np.clip(position, self._low + inside, self._high - inside)

    def fit(self, starts: Sequence[Floats]) -> Fit:
        solutions = [
            least_squares(self._residuals, s, self._jacobian, (self._low, self._high), max_nfev=200) for s in starts
        ]
        best = min(solutions, key=lambda solution: float(solution.cost))
        spare = max(1, len(best.fun) - len(best.x))  # none is spare where one of the fewest runs is left out
        return Fit(self._law(best.x), -best.fun * np.sqrt(len(best.fun) / spare))

    def _law(self, position: Floats) -> MixtureLaw:
        floor, exponent, *values = position[0], *np.exp(position[1:])
        return MixtureLaw(float(floor), float(exponent), tuple(map(float, values)))

    def _residuals(self, position: Floats) -> Floats:
        return np.asarray(np.log(self._law(position).losses(self._shares_RS)) - np.log(self._losses_R))

    def _jacobian(self, position: Floats) -> Floats:
        law = self._law(position)
        parts_RS = self._shares_RS**law.exponent * np.array(law.values)
        worth_R = np.maximum(parts_RS.sum(1), _LEAST)
        by_exponent_R = -law.exponent * (parts_RS * self._log_shares_RS).sum(1) / worth_R**2
        by_values_RS = -parts_RS / worth_R[:, None] ** 2
        columns = np.column_stack([np.ones_like(worth_R), by_exponent_R, by_values_RS])
        return np.asarray(columns / law.losses(self._shares_RS)[:, None])
