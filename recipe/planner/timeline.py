"""From kernels and links to the time of a step: what overlaps, what is exposed, and within which range.

ZeRO-3's gathers and reductions run beside the computation on a stream of their own; AutoEP's all-to-alls do not. A
collective that overlaps slows the computation a little, since it takes SMs and memory bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from recipe.planner.communication import ON_DEMAND, STEP, Collective, collectives
from recipe.planner.kernels import COMPILED, EAGER, RUN_EFFICIENCY, LayerLoad, gradient_s, head_s, layer_s, optimizer_s
from recipe.planner.links import NETWORK_EFFICIENCY, Links
from recipe.planner.memory import state_bytes
from recipe.planner.parameters import decoder
from recipe.planner.workload import Workload
from recipe.planner.zero3 import BACKWARD, FORWARD, RECOMPUTE

CONTENTION = 0.08  # of a collective's time, by which the computation under it takes longer
OVERLAPPABLE = 0.9  # of a pass's computation: a prefetch waits for its bucket, the reduction for its gradients


@dataclass(frozen=True)
class Assumptions:
    """What is not known before the launch."""

    name: str
    compute: float  # efficiency of kernels over the model's
    network_efficiency: float
    imbalance: float  # assignments of the busiest rank over the mean
    straggler: float  # slowdown per doubling of nodes: the slowest of many sets the pace


OPTIMISTIC = Assumptions("optimistic", 1.05, 0.92, 1.03, 0.001)
EXPECTED = Assumptions("expected", RUN_EFFICIENCY, NETWORK_EFFICIENCY, 1.10, 0.004)
# Nine of ten published rows are above three quarters of what is predicted for them (benchmarks/planner_accuracy.py).
CONSERVATIVE = Assumptions("conservative", 0.75 * RUN_EFFICIENCY, 0.65, 1.25, 0.012)
RANGE = (OPTIMISTIC, EXPECTED, CONSERVATIVE)


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
    exposed, hidden = _exposed(work, durations, compute, ends=_uncovered(work, links))
    shard = state_bytes(work).master_weights / 4
    update = optimizer_s(work.cluster.accelerator, shard) / assumed.compute
    total = sum(compute.values())
    subtotal = total + update + sum(exposed.values()) + CONTENTION * hidden
    nodes = max(1, work.cluster.nodes)
    return StepTime(
        total,
        compute[RECOMPUTE],
        update,
        exposed,
        CONTENTION * hidden,
        subtotal * assumed.straggler * math.log2(nodes),
        durations,
    )


def _exposed(
    work: Workload, durations: dict[Collective, float], compute: dict[str, float], *, ends: float
) -> tuple[dict[str, float], float]:
    """Seconds of collectives that computation does not cover, by purpose; and seconds that it does.

    Args:
        ends: what has nothing to overlap with.
    """
    overlapped = {FORWARD: 0.0, BACKWARD: 0.0}
    exposed = {
        "all-to-all": 0.0,
        "gathers and reductions": 0.0,
        "gathers on demand": 0.0,
        "first gather, last reduction": ends,
        "between steps": 0.0,
    }
    for c, seconds in durations.items():
        if c.op == "all_to_all":
            exposed["all-to-all"] += seconds
        elif c.phase == STEP or c.purpose == "tokens of the batch":
            exposed["between steps"] += seconds
        elif c.purpose.endswith(ON_DEMAND):
            exposed["gathers on demand"] += seconds
        elif work.ds.zero_optimization.overlap_comm is False and c.op != "all_gather":
            exposed["gathers and reductions"] += seconds
        else:
            overlapped[FORWARD if c.phase == FORWARD else BACKWARD] += seconds
    hidden = 0.0
    beside = {FORWARD: compute[FORWARD], BACKWARD: compute[BACKWARD] + compute[RECOMPUTE]}
    if work.ds.zero_optimization.stage == 1:  # reduces beside the last micro-batch's backward pass alone
        beside[BACKWARD] /= work.accumulation
    for phase, seconds in overlapped.items():
        # What is uncovered at either end is part of these collectives and already counted.
        covered = min(seconds, OVERLAPPABLE * beside[phase])
        exposed["gathers and reductions"] += max(0.0, seconds - covered - ends / 2)
        hidden += covered
    return exposed, hidden


def _compute_s(work: Workload, imbalance: float) -> dict[str, float]:
    """Computation of a step by phase, all micro-batches."""
    gpu, model, shape = work.cluster.accelerator, work.architecture, work.shape
    software = COMPILED if work.run.compile else EAGER
    forward = backward = recompute = 0.0
    for moe, layers in ((False, shape.first_k_dense_replace), (True, shape.num_moe_layers)):
        load = LayerLoad(moe, work.tokens, work.run.seq_length, expert_ranks=work.ep, imbalance=imbalance)
        layer = layer_s(gpu, model, software, load)
        forward += layers * layer.forward_s
        backward += layers * layer.backward_s
        recompute += layers * layer.forward_s if work.run.recompute != "none" else 0.0
    head = head_s(gpu, model, work.tokens, software)
    backward += gradient_s(gpu, sum(p.numel for p in decoder(shape, work.ep).parameters))
    times = work.accumulation
    return {
        FORWARD: times * (forward + head.forward_s),
        RECOMPUTE: times * recompute,
        BACKWARD: times * (backward + head.backward_s),
    }


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
