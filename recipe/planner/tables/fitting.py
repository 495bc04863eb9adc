"""The planner's free constants, fitted to published runs of some sources and judged on the others.

A row is never judged by constants that were fitted to a row of its own source: what a paper or a project reports shares a
cluster, software and a way to count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from recipe.planner.search.strategies import Achieved
from recipe.planner.tables.published import Constants, Prediction, Run, prediction

ROW_NOISE = 0.10  # of a row, in logarithms: clocks, versions, rounding, what it does not say


@dataclass(frozen=True)
class Free:
    """A constant that is fitted: physical, with what is believed of it before any row is seen."""

    name: str
    prior: float
    spread: float  # standard deviation of its logarithm
    least: float
    most: float = 1.0


FREE = (
    Free("Ampere: a run's speed over its kernels'", 0.92, 0.06, 0.6),
    Free("Hopper: a run's speed over its kernels'", 0.84, 0.08, 0.6),
    Free("Blackwell: a run's speed over its kernels'", 0.80, 0.12, 0.5),
    Free("rings between nodes, share of the network", 0.85, 0.10, 0.5),
    Free("all-to-alls between nodes, share of a ring's", 1.00, 0.25, 0.4, 1.4),
    Free("computation beside which FSDP's collectives run", 0.80, 0.15, 0.4),
)


def constants_of(values: Sequence[float]) -> Constants:
    """From values in the order of `FREE`."""
    ampere, hopper, blackwell, network, exchange, overlap = values
    efficiency = {"Ampere": ampere, "Hopper": hopper, "Blackwell": blackwell}
    return Constants(efficiency, Achieved(network, exchange, overlap))


def fit(runs: Sequence[Run]) -> list[float]:
    """Values of `FREE`: robust least squares of the logarithms of predicted over published, and of value over prior.

    A source of n rows weighs as the root of n: rows of one source share their errors.
    """
    rows = Counter(source_of(run.row) for run in runs)
    weights = np.array([rows[source_of(run.row)] ** -0.25 for run in runs]) / ROW_NOISE
    priors, spreads = np.array([f.prior for f in FREE]), np.array([f.spread for f in FREE])

    def residuals(values: np.ndarray) -> np.ndarray:
        constants = constants_of(values.tolist())
        errors = np.array([np.log(run.predicted(constants) / run.published) for run in runs])
        return np.concatenate([weights * errors, np.log(values / priors) / spreads])

    bounds = ([f.least for f in FREE], [f.most for f in FREE])
    start = np.clip(priors, np.add(bounds[0], 1e-3), np.subtract(bounds[1], 1e-3))
    solution = least_squares(residuals, start, bounds=bounds, loss="soft_l1", diff_step=1e-3, xtol=1e-4, ftol=1e-4)
    return solution.x.tolist()


def source_of(row: dict[str, str]) -> str:
    """The paper or the project that a row's source is from, whatever table or file of it."""
    source = row["source"].strip()
    if match := re.search(r"arxiv[.\w/]*[:/ ]+(?:abs/|pdf/)?(\d{4}\.\d{4,5})", source, re.IGNORECASE):
        return f"arXiv:{match[1]}"
    if match := re.search(r"github\.com/([\w.-]+/[\w.-]+)", source):
        return match[1]
    return re.split(r"[\s,;]", source, maxsplit=1)[0] or "not stated"


@dataclass(frozen=True)
class Split:
    """Sources left out of a fit, and what its constants predict of both parts."""

    left_out: tuple[str, ...]
    values: list[float]  # of FREE
    fitted: list[Prediction]
    judged: list[Prediction]


def splits(runs: Sequence[Run], folds: Sequence[Sequence[str]]) -> Iterator[Split]:
    """One fit for each fold of sources that is left out."""
    for fold in folds:
        inside = [run for run in runs if source_of(run.row) not in fold]
        outside = [run for run in runs if source_of(run.row) in fold]
        if inside and outside:
            values = fit(inside)
            constants = constants_of(values)
            fitted, judged = ([prediction(run, constants) for run in part] for part in (inside, outside))
            yield Split(tuple(fold), values, fitted, judged)


def one_source_out(runs: Sequence[Run]) -> list[list[str]]:
    return [[source] for source in sorted({source_of(run.row) for run in runs})]


def grouped_folds(runs: Sequence[Run], number: int) -> list[list[str]]:
    """Sources dealt into `number` folds, the largest first, each to the fold with the fewest rows."""
    rows = Counter(source_of(run.row) for run in runs)
    folds: list[list[str]] = [[] for _ in range(number)]
    for source in sorted(rows, key=lambda s: (-rows[s], s)):
        min(folds, key=lambda fold: sum(rows[s] for s in fold)).append(source)
    return [fold for fold in folds if fold]
