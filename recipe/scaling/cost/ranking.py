"""Models and clusters ranked by what a target loss costs with each: the law's tokens, the batch's price, and a plan's days."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.base.errors import UserError
from recipe.base.hardware import Cluster
from recipe.base.model_shape import ModelShape
from recipe.planner.cost import Cost
from recipe.planner.search.search import Candidate
from recipe.planner.timing.timeline import RANGE
from recipe.scaling.cost.critical_batch import batch_price
from recipe.scaling.cost.span import Span
from recipe.scaling.cost.tokens import lowest_loss, tokens_to_loss
from recipe.scaling.ladder_file import Ladder
from recipe.scaling.law import size_of

# The fastest ds_config of a model on a cluster with a batch of so many tokens.
# Raises UserError where none fits.
Search = Callable[[ModelShape, Cluster, float], Candidate]


@dataclass(frozen=True)
class LossCost:
    """What a target loss costs with a model on a cluster.

    Args:
        law_tokens: by the law, with the batch of the ladder's rule.
        fastest: the fastest ds_config.
    """

    model: str
    law_tokens: Span
    fastest: Candidate

    @property
    def batch(self) -> Span:
        """What the batch multiplies the expected tokens with."""
        return self._price_at(self.law_tokens.value)

    @property
    def tokens(self) -> Span:
        """With the batch: at the ends the fewest tokens at their lowest price, and the most at their highest."""
        low, value, high = self.law_tokens.ends
        most = high * self._price_at(high).high if math.isfinite(high) else math.inf
        return Span(value * self.batch.value, low * self._price_at(low).low, most)

    def _price_at(self, tokens: float) -> Span:
        return batch_price(self.fastest.plan.work.tokens_per_step, tokens)

    @property
    def costs(self) -> tuple[Cost, Cost, Cost]:
        """From the fewest tokens at the optimistic step to the most at the conservative one."""
        low, value, high = (
            self.fastest.plan.cost(a, tokens) for a, tokens in zip(RANGE, self.tokens.ends, strict=True)
        )
        return low, value, high

    @property
    def active(self) -> float:
        """Parameters, as the law counts them."""
        return size_of(self.fastest.plan.work.shape, 1).active

    def span(self, name: str) -> Span:
        """`days`, `gpu_hours` or `usd`."""
        low, value, high = (getattr(cost, name) for cost in self.costs)
        return Span(value, low, high)

    def as_dict(self) -> dict[str, Any]:
        plan = self.fastest.plan
        return {
            "model": self.model,
            "gpus": plan.work.ranks,
            "global_batch_tokens": plan.work.tokens_per_step,
            "law_tokens": self.law_tokens.as_dict(),
            "batch_factor": self.batch.as_dict(),
            "tokens": self.tokens.as_dict(),
            **{name: self.span(name).as_dict() for name in ("days", "gpu_hours", "usd")},
            "choice": self.fastest.name,
            "step_s": {assumed.name: plan.time(assumed).step_s for assumed in RANGE},
            "active": self.active,
            "ds_config": self.fastest.config,
        }


@dataclass(frozen=True)
class NoCost:
    """Why a model, or a model on a cluster, has no cost of the target loss."""

    model: str
    gpus: int | None  # None: on any
    batch_tokens: float | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.model, "gpus": self.gpus, "global_batch_tokens": self.batch_tokens, "reason": self.reason}


def rank(
    ladder: Ladder, targets: Mapping[str, float], shapes: Mapping[str, ModelShape], clusters: Sequence[Cluster],
    batches: Sequence[float], search: Search,
) -> tuple[list[LossCost], list[NoCost]]:  # fmt: skip
    """Every model on every cluster with every batch, the cheapest first; and those that have no cost.

    Args:
        targets: bits per byte by source; a model is to reach all of them.
        batches: tokens of a step.

    Raises:
        UserError: no model can reach the target, or none has a ds_config that fits.
    """
    tokens, refused = _tokens_of(ladder, targets, shapes)
    outcomes = [
        outcome
        for model, law_tokens in tokens.items()
        for outcome in _on_clusters(model, shapes[model], law_tokens, clusters, batches, search)
    ]
    ranked = [outcome for outcome in outcomes if isinstance(outcome, LossCost)]
    refused += [outcome for outcome in outcomes if isinstance(outcome, NoCost)]
    if not ranked:
        raise UserError(
            "no model has a cost of the target loss: " + "; ".join(f"{r.model}: {r.reason}" for r in refused)
        )
    return sorted(ranked, key=lambda cost: cost.costs[1].usd), refused


def _tokens_of(
    ladder: Ladder, targets: Mapping[str, float], shapes: Mapping[str, ModelShape]
) -> tuple[dict[str, Span], list[NoCost]]:
    """By the law, of the models that it says something of and that reach the targets."""
    sizes = {model: size_of(shape, 1) for model, shape in shapes.items()}
    refused = [NoCost(m, None, None, problem) for m, size in sizes.items() if (problem := ladder.problem_with(size))]
    for number in refused:
        del sizes[number.model]
    spans = dict(zip(sizes, tokens_to_loss(ladder.fits, targets, list(sizes.values())), strict=True)) if sizes else {}
    for model in [m for m, span in spans.items() if math.isinf(span.value)]:
        lowest = {source: lowest_loss(ladder.fits[source].law, sizes[model]) for source in targets}
        ends = ", ".join(f"{source} {loss:.4f}" for source, loss in lowest.items() if loss >= targets[source])
        refused.append(NoCost(model, None, None, f"no number of tokens is enough; at this size the law ends at {ends}"))
        del spans[model]
    return spans, refused


def _on_clusters(
    model: str,
    shape: ModelShape,
    law_tokens: Span,
    clusters: Sequence[Cluster],
    batches: Sequence[float],
    search: Search,
) -> Iterator[LossCost | NoCost]:
    for cluster in clusters:
        for batch in batches:
            try:
                fastest = search(shape, cluster, batch)
            except UserError as error:
                yield NoCost(model, cluster.gpus, batch, str(error))
            else:
                yield LossCost(model, law_tokens, fastest)
