"""How much of each source a run reads, and when: temperature sampling, epoch caps, an annealed last part.

A plan is a list of stretches for each phase of the run, each with the share of every source, that the loader follows to
the sequence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from recipe.base.errors import UserError
from recipe.base.run_config.data import Mixture

CYCLE = 4096  # sequences over which the mixture is exact: weights are kept to 1/4096


@dataclass(frozen=True)
class PhaseData:
    """What a phase of a run is to read.

    Args:
        seq_length: tokens predicted per sequence.
        tokens: its planned length.
        folder: identity of the token folder by its content; phases of one folder share what they have read.
        sizes: tokens of each source.
        name: for messages.
    """

    mixture: Mixture
    seq_length: int
    tokens: float
    folder: str
    sizes: Mapping[str, float]
    name: str = ""


@dataclass(frozen=True)
class Stretch:
    """A part of a phase with one mixture."""

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


def plan_mixture(phases: Sequence[PhaseData]) -> list[list[Stretch]]:
    """The stretches of each phase: one, or two where a run of one phase anneals.

    Raises:
        UserError: names that do not fit the sources, or epoch caps that leave a phase without data.
    """
    claimed: dict[tuple[str, str], float] = defaultdict(float)  # tokens of (folder, source) that later phases read
    plans = []
    for number in reversed(range(len(phases))):  # the last parts come first in claiming data: they need it fresh
        with named(number, phases):
            plans.append(_plan_phase(phases[number], claimed, alone=len(phases) == 1))
    return plans[::-1]


@contextmanager
def named(number: int, phases: Sequence[PhaseData]) -> Iterator[None]:
    """Say in an error which phase it is about, in a run of several."""
    try:
        yield
    except UserError as error:
        if len(phases) == 1:
            raise
        raise UserError(f"phases.{number} ({phases[number].name}): {error}") from None


def _plan_phase(phase: PhaseData, claimed: dict[tuple[str, str], float], *, alone: bool) -> list[Stretch]:
    mixture = phase.mixture
    _check_names(phase.sizes, mixture)
    if mixture.anneal is not None and not alone:
        raise UserError(
            "data.mixture.anneal is of a run without phases; remove it, and give a last phase the mixture of the anneal"
        )
    base = _base_weights(phase.sizes, mixture)
    stretches = []
    for first, length in sorted(_lengths(phase).items(), reverse=True):
        needed = length * CYCLE * phase.seq_length
        wanted = base if first == 0 else _annealed(base, mixture)
        weights = capped(wanted, _left(phase, claimed), needed)
        for name, weight in weights.items():
            claimed[phase.folder, name] += weight * needed
        stretches.append(Stretch(first, weights))
    return stretches[::-1]


def _lengths(phase: PhaseData) -> dict[int, float]:
    """First cycle of each stretch, and its cycles; a part of one counts as one, since its order is that of a whole one."""
    cycles = max(1.0, phase.tokens / (CYCLE * phase.seq_length))
    anneal = phase.mixture.anneal
    if anneal is None:
        return {0: cycles}
    start = round(cycles * (1 - anneal.share))
    if start == 0:
        raise UserError(
            f"data.mixture.anneal.share {anneal.share} of a run of {cycles:.1f} cycles of {CYCLE} sequences "
            "leaves nothing before it; lower it or remove anneal"
        )
    if start >= cycles:
        raise UserError(
            f"data.mixture.anneal.share {anneal.share} of a run of {cycles:.1f} cycles of {CYCLE} sequences "
            "is less than half a cycle; raise it or remove anneal"
        )
    return {0: float(start), start: cycles - start}


def _left(phase: PhaseData, claimed: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Tokens of each source that the phase may read."""
    if phase.mixture.max_epochs is None:
        return dict.fromkeys(phase.sizes, math.inf)
    most = {name: phase.mixture.max_epochs * size for name, size in phase.sizes.items()}
    return {name: max(0.0, tokens - claimed[phase.folder, name]) for name, tokens in most.items()}


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
