"""Every collective of one optimizer step, counted as the engine issues them.

`bytes` is what a rank hands to or gets from the collective over the whole step: the result of an all-gather, the
input of a reduce-scatter or all-reduce, what is sent in an all-to-all (to itself included). Tests compare the counts
with the real engine's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from recipe.planner.parameters import decoder
from recipe.planner.timing.links import Group
from recipe.planner.workload import BYTES, Workload
from recipe.planner.zero3 import BACKWARD, FORWARD, RECOMPUTE, Fetches, micro_batch_fetches, persistent

ON_DEMAND = ", on demand"  # a module waits for it
STEP = "step"  # between the last backward pass and the next forward pass
EXPERT_GROUP = 178_956_971  # most elements of a group of experts, `deepspeed/moe/utils.py` of 0.19.8
ROUTER_SCALARS = 7  # per layer, see recipe/telemetry/routing_metrics.py


@dataclass(frozen=True)
class Collective:
    """Calls of one kind in one step."""

    op: str  # all_gather, reduce_scatter, all_reduce, all_to_all
    purpose: str
    phase: str
    group: Group
    dtype: str
    bytes: int
    calls: int


def collectives(work: Workload) -> list[Collective]:
    """All collectives of a steady step, by purpose and phase; those of a group of one rank are left out."""
    of_step = [*_dispatch(work), *_routing_statistics(work), *_gradient_norm(work)]
    of_step += _zero3(work) if work.ds.zero_optimization.stage == 3 else _zero012(work)
    return [c for c in of_step if c.group.ranks > 1 and c.bytes]


def bytes_by_kind(work: Workload) -> dict[tuple[str, int, str], int]:
    """Bytes of a step by operation, ranks and dtype, which is how an engine's collectives are told apart."""
    totals: Counter[tuple[str, int, str]] = Counter()
    for c in collectives(work):
        totals[c.op, c.group.ranks, c.dtype] += c.bytes
    return dict(totals)


def _dispatch(work: Workload) -> Iterator[Collective]:
    """Tokens to their experts and back, with their routing weights in fp32; and how many, which the host reads."""
    shape, parts = work.shape, work.exchange_parts
    rows = work.tokens * shape.num_experts_per_tok
    row_bytes = shape.hidden_size * work.element
    for phase, sent, returned, counted in _exchanging_layers(work):
        for purpose, layers, dtype, size, calls in (
            ("dispatch", sent, work.dtype, rows * row_bytes, parts),
            ("routing weights", sent, "fp32", rows * 4, parts),
            ("combine", returned, work.dtype, rows * row_bytes, parts),
            ("counts", counted, "int32", parts * shape.n_routed_experts * 4, 1),  # of all parts together
        ):
            times = layers * work.accumulation
            yield Collective("all_to_all", purpose, phase, work.expert_group, dtype, times * size, times * calls)


def _exchanging_layers(work: Workload) -> Iterator[tuple[str, int, int, int]]:
    """By phase, the MoE layers that send rows to their experts, those that send them back, and those that count them."""
    every, recompute = work.shape.num_moe_layers, work.run.recompute
    yield FORWARD, every, every, every
    if recompute == "reentrant":  # torch's runs all of a layer again
        yield RECOMPUTE, every, every, every
    elif recompute != "none":  # the routing plan is held, and nothing reads what comes back
        yield RECOMPUTE, every - work.kept.moe_layers("rows", work.shape), 0, 0
    yield BACKWARD, every, every, 0


def _routing_statistics(work: Workload) -> Iterator[Collective]:
    """The step's valid tokens, and the loads that the expert bias and the metrics need."""
    yield Collective("all_reduce", "tokens of the batch", FORWARD, work.world, "fp64", 16, 1)
    width = work.shape.n_routed_experts
    if work.run.observed:
        width = (work.run.sources + 1) * width + ROUTER_SCALARS + work.ranks
    size = work.shape.num_moe_layers * width * 8
    yield Collective("all_reduce", "routing statistics", STEP, work.world, "fp64", size, 1)


def _gradient_norm(work: Workload) -> Iterator[Collective]:
    """Scalars: squared norms of the optimizer's groups (decayed, routers, spared; experts), and whether one overflowed."""
    stage, others = work.ds.zero_optimization.stage, 3
    experts = _expert_groups(work)
    if stage == 3:
        for group, calls in ((work.world, others), (work.expert_data_group, experts), (work.expert_group, experts)):
            yield Collective("all_reduce", "gradient norm", STEP, group, "fp64", 8 * calls, calls)
    elif stage == 2 or (stage == 1 and work.accumulated_dtype == work.reduced_dtype):
        for group, calls in ((work.world, others), (work.expert_data_group, experts)):
            yield Collective("all_reduce", "gradient norm", STEP, group, "fp32", 4 * calls, calls)
        if work.ds.bf16_enabled:
            yield Collective("all_reduce", "overflow", STEP, work.world, "uint8", 1, 1)
    elif stage == 1:
        yield Collective("all_reduce", "gradient norm", STEP, work.expert_group, "fp32", 4, 1)


def _expert_groups(work: Workload) -> int:
    """Into which DeepSpeed divides the experts for the optimizer: each takes parameters in order as long as they fit."""
    groups, filled = (
        0,
        EXPERT_GROUP,
    )  # where the first does not fit, DeepSpeed's first group stays empty and has no norm
    for p in decoder(work.shape, work.ep).parameters:
        if p.expert:
            groups, filled = (groups, filled + p.numel) if filled + p.numel <= EXPERT_GROUP else (groups + 1, p.numel)
    return groups


def _zero3(work: Workload) -> Iterator[Collective]:
    zero, dtype = work.ds.zero_optimization, work.dtype
    parameters = decoder(work.shape, work.ep).parameters
    fetches = fetches_of(work)
    numel = fetches.numel({e: work.partitions(expert=e) for e in (False, True)})
    for (phase, expert, prefetched), elements in numel.items():
        calls = fetches.calls(phase, expert=expert, prefetched=prefetched)
        yield Collective(
            "all_gather", _of(expert) + ("" if prefetched else ON_DEMAND), phase, _owners(work, expert), dtype,
            elements * work.element * work.accumulation, calls * work.accumulation,
        )  # fmt: skip
    for expert in (False, True):
        kind = [p for p in parameters if p.expert == expert]
        elements = sum(p.padded(work.partitions(expert=expert)) for p in kind)
        calls = max(1, -(-elements // zero.reduce_bucket_size), work.shape.num_moe_layers)
        size = elements * BYTES[work.reduced_dtype] * work.accumulation
        yield Collective(
            "reduce_scatter", _of(expert), BACKWARD, _owners(work, expert), work.reduced_dtype, size,
            calls * work.accumulation,
        )  # fmt: skip
        stay = [p for p in persistent(parameters, zero) if p.expert == expert]
        size = sum(p.padded(work.partitions(expert=expert)) for p in stay) * work.element
        yield Collective("all_gather", f"persistent {_of(expert)}", STEP, _owners(work, expert), dtype, size, len(stay))


def _zero012(work: Workload) -> Iterator[Collective]:
    """Gradients are all-reduced, also where only a partition is kept; ZeRO-1 does so once a step, ZeRO-2 every micro-batch."""
    zero, dtype = work.ds.zero_optimization, work.dtype
    times = work.accumulation if zero.stage == 2 else 1
    for expert in (False, True):
        elements = sum(p.numel for p in decoder(work.shape, work.ep).parameters if p.expert == expert)
        calls = times * -(-elements // zero.reduce_bucket_size)
        size = elements * BYTES[work.reduced_dtype] * times
        yield Collective(
            "all_reduce", f"gradients of {_of(expert)}", BACKWARD, _owners(work, expert), work.reduced_dtype, size, calls
        )  # fmt: skip
        if zero.stage > 0:
            padded = sum(flat_numel(work, group) for group in flat_groups(work) if group[0] == expert)
            calls = max(1, -(-padded // zero.allgather_bucket_size))
            yield Collective(
                "all_gather", _of(expert), STEP, _owners(work, expert), dtype, padded * work.element, calls
            )


def fetches_of(work: Workload) -> Fetches:
    """What ZeRO-3 gathers in a micro-batch, and holds at once."""
    return micro_batch_fetches(
        work.shape, work.ep, work.ds.zero_optimization, work.run.recompute,
        accumulates=work.accumulation > 1, parts=work.exchange_parts, whole=work.kept.whole,
    )  # fmt: skip


def flat_groups(work: Workload) -> list[tuple[bool, int]]:
    """(experts?, elements) of the optimizer's parameter groups, which ZeRO-1 and 2 flatten and pad."""
    sizes: dict[tuple[bool, bool], int] = {}
    for p in decoder(work.shape, work.ep).parameters:
        spared = "norm" in p.name or "embed_tokens" in p.name or p.name.endswith("bias")
        sizes[p.expert, spared] = sizes.get((p.expert, spared), 0) + p.numel
    return [(expert, numel) for (expert, _), numel in sizes.items()]


def flat_numel(work: Workload, group: tuple[bool, int]) -> int:
    """Elements of a flattened group with its padding to two elements a rank."""
    expert, numel = group
    alignment = 2 * work.partitions(expert=expert)
    return -(-numel // alignment) * alignment


def _owners(work: Workload, expert: bool) -> Group:
    return work.expert_data_group if expert else work.world


def _of(expert: bool) -> str:
    return "experts" if expert else "other parameters"
