"""How much of each source a run reads, and when: temperature sampling, epoch caps, an annealed last part.

A plan is a list of phases, each with the share of every source, that the loader follows to the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from recipe.base.errors import UserError
from recipe.base.run_config.data import Mixture

CYCLE = 4096  # sequences over which the mixture is exact: weights are kept to 1/4096


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with one mixture."""

    first_cycle: int
    weights: dict[str, float]  # source -> share of the sequences


def mixture_weights(tokens: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Temperature sampling: p proportional to tokens ** alpha (arXiv 1907.05019 with alpha = 1/T)."""
    powers = {name: count**alpha for name, count in tokens.items()}
    return normalized(powers)


def normalized(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    if math.isinf(total):  # of weights near the largest number
        return normalized({name: weight / max(weights.values()) for name, weight in weights.items()})
    return {name: weight / total for name, weight in weights.items()}


def plan_mixture(tokens: Mapping[str, float], mixture: Mixture, run_tokens: float, cycle_tokens: float) -> list[Phase]:
    """The phases of a run.

    Args:
        tokens: of each source, one epoch.
        mixture: what the run config asks for.
        run_tokens: of the whole run.
        cycle_tokens: of `CYCLE` sequences, the grain of phases.

    Raises:
        UserError: names that do not fit the sources, or epoch caps that leave the run without data.
    """
    _check_names(tokens, mixture)
    base = _base_weights(tokens, mixture)
    cycles = max(1.0, run_tokens / cycle_tokens)
    if mixture.anneal is None:
        lengths = {0: cycles}
    else:
        start = round(cycles * (1 - mixture.anneal.share))
        if start == 0:
            raise UserError(
                f"data.mixture.anneal.share {mixture.anneal.share} of a run of {cycles:.1f} cycles of {CYCLE} sequences "
                "leaves nothing before it; lower it or remove anneal"
            )
        if start >= cycles:
            raise UserError(
                f"data.mixture.anneal.share {mixture.anneal.share} of a run of {cycles:.1f} cycles of {CYCLE} sequences "
                "is less than half a cycle; raise it or remove anneal"
            )
        lengths = {0: float(start), start: cycles - start}
    left = {name: mixture.max_epochs * size if mixture.max_epochs else float("inf") for name, size in tokens.items()}
    phases = []
    # the annealed part comes first in claiming data: it needs its sources fresh
    for first, length in sorted(lengths.items(), reverse=True):
        wanted = base if first == 0 else _annealed(base, mixture)
        weights = capped(wanted, left, length * cycle_tokens)
        left = {name: left[name] - weights[name] * length * cycle_tokens for name in left}
        phases.append(Phase(first, weights))
    return phases[::-1]


def capped(weights: Mapping[str, float], left: Mapping[str, float], needed: float) -> dict[str, float]:
    """Shares of `needed` tokens by weight where no source gives more than it has left; the others fill in.

    Raises:
        UserError: all sources together have less left than is needed.
    """
    available = sum(left[name] for name, weight in weights.items() if weight > 0)
    if available < needed * (1 - 1e-9):
        raise UserError(
            f"data.mixture.max_epochs leaves {available:.3g} tokens for {needed:.3g}; raise it, add data or shorten the run"
        )
    given: dict[str, float] = {}
    open_ = {name: weight for name, weight in weights.items() if weight > 0}
    while open_:
        rest = needed - sum(given.values())
        asked = {name: rest * share for name, share in normalized(open_).items()}
        full = [name for name in open_ if asked[name] > left[name]]
        if not full:
            given.update(asked)
            break
        for name in full:
            given[name] = left[name]
            del open_[name]
    return {name: given.get(name, 0.0) / needed for name in weights}


def _base_weights(tokens: Mapping[str, float], mixture: Mixture) -> dict[str, float]:
    if mixture.weights is not None:
        return _shares("weights", {name: mixture.weights[name] for name in tokens})
    factors = {name: mixture.factors.get(name, 1.0) for name in tokens}
    weights = mixture_weights(tokens, mixture.alpha)
    return _shares("factors", {name: factors[name] * weights[name] for name in tokens})


def _shares(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """`weights` of the sources, that `data.mixture.NAME` has made, as shares."""
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise UserError(
            f"data.mixture.{name} must not be negative and not be zero for all sources; they make "
            + ", ".join(f"{source} {weight:g}" for source, weight in weights.items())
        )
    return normalized(weights)


def _annealed(base: Mapping[str, float], mixture: Mixture) -> dict[str, float]:
    assert mixture.anneal is not None
    factors = {
        name: mixture.anneal.tier_weights[mixture.tiers[name]] if name in mixture.tiers else 1.0 for name in base
    }
    weights = {name: base[name] * factors[name] for name in base}
    if not any(weights.values()):
        raise UserError("data.mixture.anneal leaves every source a weight of zero; give one tier a weight")
    return _shares("anneal.tier_weights", weights)


def _check_names(tokens: Mapping[str, float], mixture: Mixture) -> None:
    weighted = {name for name, weight in (mixture.weights or {}).items() if weight or name in tokens}
    if mixture.weights is not None and weighted != set(tokens):
        raise UserError(
            f"the mixture names {sorted(mixture.weights)} but the tokens have {sorted(tokens)}; name each source once"
        )
    for what, names in (("factors", mixture.factors), ("tiers", mixture.tiers)):
        unknown = sorted(set(names) - set(tokens))
        if unknown:
            raise UserError(
                f"data.mixture.{what} names {', '.join(unknown)}, but the tokens have {', '.join(sorted(tokens))}"
            )
