"""Fits the law to measured runs: a robust loss on log losses, from several starts, with as many free exponents as runs allow.

As Chinchilla's third approach (arXiv 2203.15556, section 3.3): the Huber loss of differences of log losses, minimised by
L-BFGS from a grid of starts. Here a start is a choice of exponents; the three coefficients, in which the law is linear,
begin at their non-negative least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import minimize, nnls

from recipe.base.errors import UserError
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Floats, Law, Size, columns

Exponents = Literal["auto", "free", "published"]

# Where the Huber loss turns from squares to distances, in log loss: about the spread between seeds of a small run. Chinchilla
# takes 1e-3, with 400 runs; with ten, that would let three of them decide.
HUBER_DELTA = 1e-2
RUNS_PER_PARAMETER = 3  # that free exponents need: 15 runs for the five parameters at one active share
SPARE_RUNS = 2  # beyond the free parameters, so that residuals say something of the noise
_COEFFICIENTS = 3  # E, A and B, in which the law is linear
_STARTS = {"alpha": (0.2, 0.35, 0.6), "beta": (0.2, 0.35, 0.6), "kappa": (0.2, 0.6)}
_BOUNDS = {"alpha": (0.02, 1.5), "beta": (0.02, 1.5), "kappa": (0.0, 1.5)}
_LEAST = 1e-9  # of a coefficient, so that a predicted loss has a logarithm


@dataclass(frozen=True)
class Fit:
    """A law and the runs that it was fitted to.

    Args:
        free: names of the parameters that were fitted; the others are fixed.
        noise: standard deviation of a run's log loss around the law, by the residuals and the degrees of freedom.
    """

    law: Law
    sizes: tuple[Size, ...]
    losses: tuple[float, ...]
    free: tuple[str, ...]
    noise: float
    delta: float

    @property
    def spare_runs(self) -> int:
        return len(self.losses) - len(self.free)


def fit(
    sizes: Sequence[Size], losses: Sequence[float], exponents: Exponents = "auto", *, delta: float = HUBER_DELTA
) -> Fit:
    """The law of measured runs.

    kappa is free where the runs have several active shares, and 0 where they have one, of which it says nothing.

    Args:
        exponents: `free`: fitted; `published`: fixed at those of Besiroglu et al.; `auto`: free where runs are enough.

    Raises:
        UserError: too few runs.
    """
    free = free_parameters(sizes, exponents)
    if len(sizes) < len(free) + SPARE_RUNS:
        raise UserError(
            f"{len(sizes)} runs are too few to fit {', '.join(free)} with an interval; add runs up to "
            f"{len(free) + SPARE_RUNS}" + (", or fix the exponents" if "alpha" in free else "")
        )
    problem = _Problem(list(sizes), np.asarray(losses, float), free, delta)
    solved = min((problem.solve(start) for start in problem.starts()), key=lambda pair: pair[1])
    return _as_fit(problem, solved[0])


def refit(fitted: Fit, losses: Floats) -> Fit:
    """The same law of other losses of the same runs, beginning at the law that there is."""
    problem = _Problem(list(fitted.sizes), losses, fitted.free, fitted.delta)
    return _as_fit(problem, problem.solve(problem.position(fitted.law))[0])


def free_parameters(sizes: Sequence[Size], exponents: Exponents) -> tuple[str, ...]:
    several_shares = len({size.share for size in sizes}) > 1
    sparsity = ("kappa",) if several_shares else ()
    everything = ("E", "A", "B", "alpha", "beta", *sparsity)
    if exponents == "free" or (exponents == "auto" and len(sizes) >= RUNS_PER_PARAMETER * len(everything)):
        return everything
    return ("E", "A", "B", *sparsity)


def _as_fit(problem: _Problem, position: Floats) -> Fit:
    residuals = problem.residuals(position)
    noise = float(np.sqrt(residuals @ residuals / (len(residuals) - len(problem.free))))
    sizes, losses = tuple(problem.sizes), tuple(problem.losses.tolist())
    return Fit(problem.law(position), sizes, losses, problem.free, noise, problem.delta)


class _Problem:
    """The objective with each term scaled to its size in the middle of the runs, so that all unknowns are about one."""

    def __init__(self, sizes: list[Size], losses: Floats, free: tuple[str, ...], delta: float):
        self.sizes, self.losses, self.free, self.delta = sizes, losses, free, delta
        self._log_losses = np.log(losses)
        logs = [np.log(column) for column in columns(sizes)]
        self._middle = [float(log.mean()) for log in logs]
        self._active, self._share, self._tokens = (log - middle for log, middle in zip(logs, self._middle, strict=True))
        self._fixed = {"alpha": PUBLISHED_ALPHA, "beta": PUBLISHED_BETA, "kappa": 0.0}
        self._exponents = [name for name in ("alpha", "beta", "kappa") if name in free]
        least, most = _LEAST, float(2 * losses.max())
        self._bounds = [(least, most)] * _COEFFICIENTS + [_BOUNDS[name] for name in self._exponents]

    def starts(self) -> list[Floats]:
        return [self._start(exponents) for exponents in product(*(_STARTS[name] for name in self._exponents))]

    def _start(self, exponents: tuple[float, ...]) -> Floats:
        terms = self._terms(*self._all_exponents(np.array(exponents)))
        coefficients, _ = nnls(terms / self.losses[:, None], np.ones(len(self.losses)))
        return np.concatenate([np.maximum(coefficients, 1e-3 * self.losses.mean()), exponents])

    def solve(self, start: Floats) -> tuple[Floats, float]:
        result = minimize(
            self._objective, start, jac=True, method="L-BFGS-B", bounds=self._bounds,
            options={"maxiter": 500, "ftol": 1e-10, "gtol": 1e-7},
        )  # fmt: skip
        return result.x, float(result.fun)

    def residuals(self, position: Floats) -> Floats:
        terms = self._terms(*self._all_exponents(position[_COEFFICIENTS:]))
        return np.asarray(np.log(terms @ position[:_COEFFICIENTS]) - self._log_losses)

    def law(self, position: Floats) -> Law:
        alpha, beta, kappa = self._all_exponents(position[_COEFFICIENTS:])
        active, share, tokens = self._middle
        E, a, b = position[:_COEFFICIENTS].tolist()
        A, B = a * np.exp(alpha * (active - kappa * share)), b * np.exp(beta * tokens)
        return Law(E, float(A), float(alpha), float(B), float(beta), float(kappa))

    def position(self, law: Law) -> Floats:
        active, share, tokens = self._middle
        a = law.A * np.exp(-law.alpha * (active - law.kappa * share))
        b = law.B * np.exp(-law.beta * tokens)
        return np.array([law.E, a, b, *(getattr(law, name) for name in self._exponents)])

    def _all_exponents(self, free: Floats) -> tuple[float, float, float]:
        values = self._fixed | dict(zip(self._exponents, free.tolist(), strict=True))
        return values["alpha"], values["beta"], values["kappa"]

    def _terms(self, alpha: float, beta: float, kappa: float) -> Floats:
        """Of each run what the three coefficients multiply."""
        capacity = self._active - kappa * self._share
        return np.stack([np.ones_like(capacity), np.exp(-alpha * capacity), np.exp(-beta * self._tokens)], axis=1)

    def _objective(self, position: Floats) -> tuple[float, Floats]:
        """The mean Huber loss in units of delta squared, and its gradient."""
        alpha, beta, kappa = self._all_exponents(position[_COEFFICIENTS:])
        terms, (_, a, b) = self._terms(alpha, beta, kappa), position[:_COEFFICIENTS]
        predicted = terms @ position[:_COEFFICIENTS]
        scaled = (np.log(predicted) - self._log_losses) / self.delta
        clipped = np.clip(scaled, -1, 1)
        by_loss = clipped / (self.delta * predicted * len(predicted))
        by_size = a * terms[:, 1] * by_loss
        by_exponent = {
            "alpha": -by_size @ (self._active - kappa * self._share),
            "beta": -(b * terms[:, 2] * by_loss) @ self._tokens,
            "kappa": alpha * by_size @ self._share,
        }
        gradient = np.array([*(terms.T @ by_loss), *(by_exponent[name] for name in self._exponents)])
        return float(np.mean(clipped * (scaled - clipped / 2))), gradient
