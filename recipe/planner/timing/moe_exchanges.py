"""The exchanges of one MoE layer and micro-batch in each pass, and what runs beside them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from recipe.planner.timing.exchange import ExchangePass, Overlap, overlap
from recipe.planner.timing.layers import EXPERTS, FP32, SHARED, Layer
from recipe.planner.timing.links import Links
from recipe.planner.workload import Workload
from recipe.planner.zero3 import BACKWARD, FORWARD, RECOMPUTE


class Assumed(Protocol):
    """Of the timeline's assumptions."""

    @property
    def compute(self) -> float: ...

    @property
    def imbalance(self) -> float: ...


def exchanges(
    work: Workload, links: Links, assumed: Assumed, layer: Layer, kept: Collection[str]
) -> dict[str, Overlap]:
    """By phase, of one MoE layer and micro-batch; none where every rank has all experts.

    Args:
        work: whose rows are exchanged.
        links: of the cluster.
        assumed: efficiency of the computation beside the exchanges, and rows of the busiest rank.
        layer: the MoE layer's computation.
        kept: what the layer keeps of its first pass.
    """
    if work.ep == 1:
        return {}
    parts, rows_s, weights_s, counts_s = _seconds(work, links, assumed.imbalance)

    def of(names: Collection[str]) -> float:
        return layer.of(names) / assumed.compute

    def back(names: Collection[str]) -> float:
        return layer.backward_of(names) / assumed.compute

    out_s = rows_s + weights_s
    one = ExchangePass(
        of(["rows"]) / parts, out_s, of(EXPERTS) / parts, rows_s, of(["sum"]) / parts, beside_s=of(SHARED)
    )  # fmt: skip
    forward = overlap(one, parts) + Overlap(exposed_s=counts_s)  # the host reads counts before any row can leave
    # Autograd runs backward in the reverse order: sums first, the shared experts after the last part.
    mirrored = ExchangePass(
        back(["sum"]) / parts, rows_s, back(EXPERTS) / parts, out_s, back(["rows"]) / parts, back(SHARED), False
    )  # fmt: skip
    phases = {FORWARD: forward, BACKWARD: overlap(mirrored, parts)}
    if work.run.recompute == "reentrant":
        phases[RECOMPUTE] = forward
    elif work.run.recompute != "none" and "rows" not in kept:
        again = layer.parts_again(kept)
        experts, shared = ([name for name in names if name in again] for names in (EXPERTS, SHARED))
        one = ExchangePass(of(["rows"]) / parts, out_s, of(experts) / parts, beside_s=of(shared))
        phases[RECOMPUTE] = overlap(one, parts)
    return phases


def _seconds(work: Workload, links: Links, imbalance: float) -> tuple[int, float, float, float]:
    """Parts; seconds of exchanging rows and their weights of one part, and the counts of all."""
    parts, group = work.exchange_parts, work.expert_group
    rows = work.tokens * work.shape.num_experts_per_tok / parts * imbalance
    return (
        parts,
        links.all_to_all_s(rows * work.shape.hidden_size * work.element, group),
        links.all_to_all_s(rows * FP32, group),
        links.all_to_all_s(parts * work.shape.n_routed_experts * 4, group),
    )
