"""The run config's `data:` section: what a run reads, how its sources are mixed, and how they are cut into sequences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from recipe.base.strict import Section


def _problems_of_weights(name: str, weights: Mapping[Any, float]) -> list[str]:
    """What makes no shares of these weights."""
    return [f"{name}: {key} has a negative weight" for key, weight in weights.items() if weight < 0]


class Anneal(Section):
    """The last part of training, with more of the better sources (as Llama 3, arXiv 2407.21783, section 3.1.3)."""

    share: float = Field(gt=0, lt=1)
    """Part of the run's sequences, counted from the end, that is annealed."""
    tier_weights: dict[int, float]
    """Tier -> factor on the weights of its sources during the anneal; above 1 for the better tiers. Sources without
    a tier keep their weight."""

    def problems(self) -> list[str]:
        return _problems_of_weights("data.mixture.anneal.tier_weights", self.tier_weights)


class Mixture(Section):
    """How the sources are mixed: p proportional to factor * tokens ** alpha, or explicit weights."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Exponent on a source's tokens: 1 draws sources as large as they are, 0 equally often; 0.5 lifts the smaller
    language."""
    weights: dict[str, float] | None = None
    """Source -> weight, relative to the others'. Overrides `alpha` and `factors` and must name every source; for
    shares that were found by experiment."""
    factors: dict[str, float] = {}
    """Source -> factor on its weight, 1 where none is given; to lift or lower single sources."""
    max_epochs: float | None = Field(None, gt=0)
    """Most often that a source may be repeated, in epochs; what it cannot fill goes to the others. Null: no limit.
    Up to 4 cost little (arXiv 2305.16264)."""
    tiers: dict[str, int] = {}
    """Source -> quality tier, 1 the best; only `anneal` reads them."""
    anneal: Anneal | None = None

    def problems(self) -> list[str]:
        problems = [] if self.anneal is None else self.anneal.problems()
        if self.anneal is not None:
            unknown = sorted({str(t) for t in self.tiers.values()} - {str(t) for t in self.anneal.tier_weights})
            problems += [
                f"data.mixture.tiers names tier {t}, which anneal.tier_weights has no weight for" for t in unknown
            ]
        problems += _problems_of_weights("data.mixture.weights", self.weights or {})
        problems += _problems_of_weights("data.mixture.factors", self.factors)
        if self.weights is not None and not any(self.weights.values()):
            problems.append("data.mixture.weights are all zero; give one source a weight, or set null")
        if self.weights is not None and self.factors:
            problems.append("data.mixture.weights overrides factors; keep one")
        return problems


class Data(Section):
    """What the model is trained on, and how it is cut into sequences."""

    tokens: Path
    """Output folder of data_prep/tokenize_corpus.py."""
    seq_length: int = Field(gt=1)
    """Tokens predicted per sequence; at most the model's `max_position_embeddings`."""
    mixture: Mixture = Mixture()
    document_attention: bool = False
    """Attention and positions stay inside each packed document. With false, tokens see the documents before theirs
    in the sequence."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What happens at a damaged block of a shard: `stop` ends the run, `skip` leaves its sequences out and counts
    them."""
    max_damaged_share: float = Field(0.01, ge=0, le=1)
    """With `on_damage` skip: share of the sequences read that may be damaged. The run stops when more are, and more
    than one batch."""
