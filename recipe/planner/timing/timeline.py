"""From layers and links to the time of a step: what overlaps, what is exposed, and within which range.

ZeRO-3's gathers and reductions run beside the computation on a stream of their own; exchanges of rows beside the shared
experts, and in parts beside the experts of another part. A collective that overlaps slows the computation, since it takes
SMs and memory bandwidth.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

from recipe.base.hardware import RUN_EFFICIENCY, Accelerator
from recipe.planner.communication import ON_DEMAND, STEP, Collective, collectives
from recipe.planner.kept import EVERYTHING
from recipe.planner.memory import state_bytes
from recipe.planner.parameters import decoder
from recipe.planner.timing.exchange import Overlap
from recipe.planner.timing.kernels import COMPILED, EAGER, gradient_s, head_s, optimizer_s
from recipe.planner.timing.layers import Layer, LayerLoad, layer_of
from recipe.planner.timing.links import CONTENTION, NETWORK_EFFICIENCY, Link, Links
from recipe.planner.timing.moe_exchanges import exchanges
from recipe.planner.workload import Workload
from recipe.planner.zero3 import BACKWARD, FORWARD, RECOMPUTE

OVERLAPPABLE = 0.9  # of a pass's computation: a prefetch waits for its bucket, the reduction for its gradients


@dataclass(frozen=True)
class Assumptions:
    """What is not known before the launch."""

    name: str
    compute: float  # efficiency of kernels over the model's
    network_efficiency: float
    imbalance: float  # assignments of the busiest rank over the mean
    straggler: float  # slowdown per doubling of nodes: the slowest of many sets the pace


# The first steps' imbalance, of fresh routers of 96 experts on 8 ranks with 4,096 tokens a step: 1.43 to 1.53 in the first five
# with the sign update; with the quantile update 1.04 in the first, up to 1.21 in the next four (measured,
# benchmarks/results/balance_trained.json). Assumed below is the imbalance after that.
OPTIMISTIC = Assumptions("optimistic", 1.05, 0.92, 1.03, 0.001)
EXPECTED = Assumptions("expected", RUN_EFFICIENCY, NETWORK_EFFICIENCY, 1.10, 0.004)
# From conservative to optimistic is a range that claims four of five runs. Of published runs of sources that were left out of
# a fit, it has 91%, of those of MoE models 82% (benchmarks/results/planner_accuracy.json).
CONSERVATIVE = Assumptions("conservative", 0.75 * RUN_EFFICIENCY, 0.65, 1.25, 0.012)
RANGE = (OPTIMISTIC, EXPECTED, CONSERVATIVE)
RANGE_CLAIMS = "the range claims 4 of 5 runs"


def assumed_of(assumed: Assumptions, gpu: Accelerator) -> Assumptions:
    """The assumptions around the efficiency of a run that a calibration of the GPU has measured; without one as they are.

    The range keeps its width, since one slice on one GPU does not tell how far other shapes are from it. Network, imbalance
    and stragglers stay assumed: one GPU measures none of them.
    """
    return replace(assumed, compute=assumed.compute * (gpu.run_efficiency / RUN_EFFICIENCY))


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    compute_s: float
    recompute_s: float  # part of compute_s
    optimizer_s: float
    exposed_s: dict[str, float]  # by purpose
    contention_s: float
    straggler_s: float
    collectives_s: dict[Collective, float] = field(repr=False)

    @property
    def step_s(self) -> float:
        return self.compute_s + self.optimizer_s + self.exposed + self.contention_s + self.straggler_s

    @property
    def exposed(self) -> float:
        return sum(self.exposed_s.values())

    @property
    def exposed_share(self) -> float:
        return self.exposed / self.step_s


def step_time(work: Workload, assumed: Assumptions) -> StepTime:
    """The time of a steady step under `assumed`."""
    links = Links(work.cluster, assumed.network_efficiency)
    compute = {phase: s / assumed.compute for phase, s in _compute_s(work, assumed.imbalance).items()}
    durations = {c: _duration(links, c, assumed.imbalance) for c in collectives(work)}
    exchanged = _exchanged(work, links, assumed)
    exposed, slowed = _exposed(work, links, durations, compute, ends=_uncovered(work, links))
    exposed["all-to-all"] = exchanged.exposed_s
    contention = slowed + CONTENTION[links.link_of(work.expert_group)] * exchanged.hidden_s
    shard = state_bytes(work).master_weights / 4
    update = optimizer_s(work.cluster.accelerator, shard) / assumed.compute
    total = sum(compute.values())
    subtotal = total + update + sum(exposed.values()) + contention
    nodes = max(1, work.cluster.nodes)
    return StepTime(
        total,
        compute[RECOMPUTE],
        update,
        exposed,
        contention,
        subtotal * assumed.straggler * math.log2(nodes),
        durations,
    )


def seconds_saved(work: Workload, name: str, *, moe: bool = True, assumed: Assumptions = EXPECTED) -> float:
    """Of a micro-batch, by one layer that keeps nothing but `name` of recipe/planner/kept.py instead of nothing."""
    links, layer = Links(work.cluster, assumed.network_efficiency), _layer(work, moe, assumed.imbalance)

    def again_s(kept: frozenset[str]) -> float:
        exchanged = exchanges(work, links, assumed, layer, kept).get(RECOMPUTE, Overlap()) if moe else Overlap()
        slowed = CONTENTION[links.link_of(work.expert_group)] * exchanged.hidden_s
        return layer.again_s(kept) / assumed.compute + exchanged.exposed_s + slowed

    return again_s(frozenset()) - again_s(frozenset((name,)))


def _exchanged(work: Workload, links: Links, assumed: Assumptions) -> Overlap:
    """Exchanges of rows of a step, all layers and micro-batches."""
    total = Overlap()
    if work.ep == 1:
        return total
    layer = _layer(work, True, assumed.imbalance)
    for (moe, kept), layers in _kinds(work).items():
        for one in exchanges(work, links, assumed, layer, kept).values() if moe else ():
            total += one.times(layers * work.accumulation)
    return total


def _exposed(
    work: Workload, links: Links, durations: dict[Collective, float], compute: dict[str, float], *, ends: float
) -> tuple[dict[str, float], float]:
    """Seconds of collectives but exchanges that computation does not cover, by purpose; and by which they slow it.

    Args:
        ends: what has nothing to overlap with.
    """
    overlapped: dict[str, list[tuple[Link, float]]] = {FORWARD: [], BACKWARD: []}
    exposed = {
        "all-to-all": 0.0,
        "gathers and reductions": 0.0,
        "gathers on demand": 0.0,
        "first gather, last reduction": ends,
        "between steps": 0.0,
    }
    for c, seconds in durations.items():
        if c.op == "all_to_all":
            continue
        if c.phase == STEP or c.purpose == "tokens of the batch":
            exposed["between steps"] += seconds
        elif c.purpose.endswith(ON_DEMAND):
            exposed["gathers on demand"] += seconds
        elif work.ds.zero_optimization.overlap_comm is False and c.op != "all_gather":
            exposed["gathers and reductions"] += seconds
        else:
            overlapped[FORWARD if c.phase == FORWARD else BACKWARD].append((links.link_of(c.group), seconds))
    slowed = 0.0
    beside = {FORWARD: compute[FORWARD], BACKWARD: compute[BACKWARD] + compute[RECOMPUTE]}
    if work.ds.zero_optimization.stage == 1:  # reduces beside the last micro-batch's backward pass alone
        beside[BACKWARD] /= work.accumulation
    for phase, of_phase in overlapped.items():
        # What is uncovered at either end is part of these collectives and already counted.
        seconds = sum(s for _, s in of_phase)
        covered = min(seconds, OVERLAPPABLE * beside[phase])
        exposed["gathers and reductions"] += max(0.0, seconds - covered - ends / 2)
        slowed += sum(CONTENTION[link] * s for link, s in of_phase) * (covered / seconds if seconds else 0.0)
    return exposed, slowed


def _layer(work: Workload, moe: bool, imbalance: float) -> Layer:
    software = COMPILED if work.run.compile else EAGER
    parts = work.exchange_parts if work.ep > 1 else 1
    length = work.run.seq_length if work.run.masked else work.run.attended_tokens
    load = LayerLoad(
        moe, work.tokens, length, expert_ranks=work.ep, imbalance=imbalance, parts=parts, masked=work.run.masked
    )
    return layer_of(work.cluster.accelerator, work.architecture, software, load)


def _kinds(work: Workload) -> Counter[tuple[bool, frozenset[str]]]:
    """Layers by whether they are routed and what they keep."""
    dense, kept = work.shape.first_k_dense_replace, work.kept
    return Counter((number >= dense, kept.of_layer(number)) for number in range(work.shape.num_hidden_layers))


def _compute_s(work: Workload, imbalance: float) -> dict[str, float]:
    """Computation of a step by phase, all micro-batches."""
    gpu, model, shape = work.cluster.accelerator, work.architecture, work.shape
    software = COMPILED if work.run.compile else EAGER
    forward = backward = recompute = 0.0
    of = {moe: _layer(work, moe, imbalance) for moe in (False, True)}
    for (moe, kept), layers in _kinds(work).items():
        forward += layers * of[moe].forward_s
        backward += layers * of[moe].backward_s
        recompute += layers * _recompute_s(of[moe], work.run.recompute, kept)
    head = head_s(gpu, model, work.tokens, software)
    backward += gradient_s(gpu, sum(p.numel for p in decoder(shape, work.ep).parameters))
    times = work.accumulation
    return {
        FORWARD: times * (forward + head.forward_s),
        RECOMPUTE: times * recompute,
        BACKWARD: times * (backward + head.backward_s),
    }


def _recompute_s(layer: Layer, recompute: str, kept: frozenset[str]) -> float:
    if recompute == "none" or EVERYTHING in kept:
        return 0.0
    return layer.forward_s if recompute == "reentrant" else layer.again_s(kept)


def _duration(links: Links, c: Collective, imbalance: float) -> float:
    if c.op == "all_to_all":
        return links.all_to_all_s(c.bytes * imbalance if c.purpose != "counts" else c.bytes, c.group, c.calls)
    return links.ring_s(c.op, c.bytes, c.group, c.calls)


def _uncovered(work: Workload, links: Links) -> float:
    """What has nothing to overlap with, per step: the embedding's gather before, and its reduction after, everything."""
    shape = work.shape
    size = shape.vocab_size * shape.hidden_size * work.element
    if work.ds.zero_optimization.stage != 3:
        return 0.0
    once = links.ring_s("all_gather", size, work.world) + links.ring_s("reduce_scatter", size, work.world)
    return once * work.accumulation
