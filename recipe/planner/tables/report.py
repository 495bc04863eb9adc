"""A plan as text for a terminal, and plans of several clusters as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from recipe.base.hardware import GIB
from recipe.base.tables import duration, markdown_table
from recipe.planner.calibration import Calibration, describe_calibration
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import NO_LIMIT
from recipe.planner.search.search import EQUAL_TO_WINNER, Candidate, OnPaper, why_it_lost
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC, RANGE, RANGE_CLAIMS
from recipe.planner.workload import Workload


def describe_plan(plan: Plan, calibration: Calibration | None = None) -> str:
    """Memory, communication, time and money of one workload, and with which measured constants it was planned."""
    measured = [] if calibration is None else ["", *describe_calibration(calibration, plan.work.cluster)]
    return "\n".join(
        [*_head(plan), *measured, "", *_memory(plan), "", *_communication(plan), "", *_time(plan), "", *_money(plan)]
    )


def _head(plan: Plan) -> Iterator[str]:
    work = plan.work
    total, active = sum(work.shape.parameters().values()), sum(work.shape.active_parameters().values())
    network = work.cluster.network_bytes_per_s * 8 / 1e9
    yield f"model       {_parameters(total)} parameters, {_parameters(active)} active"
    nodes = f"{work.cluster.nodes} nodes, {network:,.0f} Gb/s between nodes (of a node)"
    yield f"cluster     {work.ranks:,} x {work.cluster.accelerator.name}, {'1 node' if work.cluster.nodes == 1 else nodes}"
    experts = f"over {work.ep} ranks ({_experts_link(plan)})" if work.ep > 1 else "all on each rank"
    yield (
        f"parallel    ZeRO-{work.ds.zero_optimization.stage}; experts {experts}, "
        f"their copies over {work.expert_data_group.ranks}"
        f"{'; weights kept from the forward to the backward pass' if _keeps_weights(work) else ''}"
    )
    yield (
        f"batch       {work.ds.train_micro_batch_size_per_gpu} x {work.run.seq_length:,} tokens a rank, "
        f"{work.accumulation} accumulated, {work.tokens_per_step:,} tokens a step; recompute {work.run.recompute}"
        f"{', compiled' if work.run.compile else ''}"
    )
    if work.run.recompute == "selective":
        yield f"kept        {work.ds.recipe.kept_gib:g} GiB of results that are not computed again: {work.kept}"
    if work.ep > 1:
        parts = work.exchange_parts
        waited = "each waited for" if parts == 1 else f"in {parts} parts, each beside the experts of another"
        yield f"exchanges   of an MoE layer {waited}"


def _parameters(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e8 else f"{number / 1e6:.2f}M"


def _experts_link(plan: Plan) -> str:
    return "NVLink" if plan.work.expert_group.nodes == 1 else "crosses nodes"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield (
        f"memory      {memory.peak_gib:.1f} GiB at the peak, in the {memory.peak_moment}; "
        f"{plan.usable_gib:.1f} of {plan.work.cluster.accelerator.memory_gib:.1f} usable; "
        f"busiest rank with {memory.imbalance:.2f} x the mean of assignments"
    )
    for term, size in sorted(memory.at(memory.peak_moment).items(), key=lambda item: -item[1]):
        yield f"  {term:<28} {size:8.3f}"
    others = {m: sum(memory.at(m).values()) for m in memory.passing if m != memory.peak_moment}
    yield "  " + ", ".join(f"{moment} {size:.1f}" for moment, size in others.items())


def _communication(plan: Plan) -> Iterator[str]:
    yield "communication of a step, each rank"
    yield f"  {'collective':<16}{'of':<34}{'in':<11}{'ranks':>6} {'link':<9}{'GiB':>8}{'calls':>7}{'s':>8}"
    for c, seconds in plan.expected.collectives_s.items():
        yield (
            f"  {c.op:<16}{c.purpose:<34}{c.phase:<11}{c.group.ranks:>6} {plan.link_of(c):<9}"
            f"{c.bytes / GIB:8.2f}{c.calls:>7,}{seconds:8.3f}"
        )


def _time(plan: Plan) -> Iterator[str]:
    yield f"time        {RANGE_CLAIMS:<30}" + "".join(f"{a.name:>14}" for a in RANGE)
    times = [plan.time(a) for a in RANGE]

    def line(name: str, values: Sequence[str]) -> str:
        return f"  {name:<40}" + "".join(f"{v:>14}" for v in values)

    yield line("computation, s", [f"{t.compute_s:.2f}" for t in times])
    yield line("  of it recomputed", [f"{t.recompute_s:.2f}" for t in times])
    for purpose in times[0].exposed_s:
        yield line(f"exposed {purpose}", [f"{t.exposed_s[purpose]:.2f}" for t in times])
    yield line("computation slowed by collectives", [f"{t.contention_s:.2f}" for t in times])
    yield line("optimizer, stragglers", [f"{t.optimizer_s + t.straggler_s:.2f}" for t in times])
    yield line("step, s", [f"{t.step_s:.2f}" for t in times])
    yield line("exposed communication", [f"{t.exposed_share:.1%}" for t in times])
    yield line("tokens/s/GPU", [f"{plan.tokens_per_s_per_gpu(a):,.0f}" for a in RANGE])
    yield line("MFU / HFU", [f"{plan.mfu(a):.1%} / {plan.hfu(a):.1%}" for a in RANGE])
    yield line(f"days for {plan.budget.tokens / 1e9:,.0f}B tokens", [f"{plan.cost(a).days:.1f}" for a in RANGE])


def _money(plan: Plan) -> Iterator[str]:
    yield from _failures(plan)
    low, mid, high = (plan.cost(a) for a in RANGE)
    yield (
        f"cost        {mid.gpu_hours:,.0f} GPU-hours ({low.gpu_hours:,.0f} to {high.gpu_hours:,.0f}), "
        f"{mid.usd:,.0f} USD ({low.usd:,.0f} to {high.usd:,.0f}) at {plan.usd_per_gpu_hour:.2f} a GPU-hour"
    )


def _failures(plan: Plan) -> Iterator[str]:
    best, r, worst = (plan.reliabilities[a.name] for a in RANGE)
    intervals = [reliability.interval_s for reliability in (best, r, worst)]
    one_in = f"one in {_days(r.mtbf_s)} days ({_days(worst.mtbf_s)} to {_days(best.mtbf_s)})"
    yield (
        f"failures    {'none' if math.isinf(r.mtbf_s) else one_in}; a restart takes {r.restart_s / 60:.0f} min "
        f"({best.restart_s / 60:.0f} to {worst.restart_s / 60:.0f})"
    )
    yield (
        f"checkpoint  stalls {r.stall_s:.0f} s ({best.stall_s:.0f} to {worst.stall_s:.0f}), best every {r.interval_s / 60:.0f} min "
        f"({min(intervals) / 60:.0f} to {max(intervals) / 60:.0f})"
    )
    yield f"goodput     {goodput_range(plan)}"
    fast, usual, slow = (plan.reshard(a) for a in RANGE)
    yield (
        f"reshard     only for another number of GPUs: {duration(usual.seconds)} ({duration(fast.seconds)} to {duration(slow.seconds)}), "
        f"of it {duration(usual.convert_s)} on one host with {usual.host_memory_bytes / GIB:,.0f} GiB in one process"
    )


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.1f}"


def goodput_range(plan: Plan) -> str:
    """The expected one, and from the lowest to the highest."""
    best, usual, worst = (plan.reliabilities[a.name].goodput for a in RANGE)
    return f"{usual:.1%} ({worst:.1%} to {best:.1%})"


def describe_search(ranked: Sequence[Candidate], paper: Sequence[OnPaper], losers: int = 16) -> str:
    """The winner, and why the others lost."""
    winner = ranked[0]
    reasons = [(c, why_it_lost(c, winner)) for c in ranked[1:]]
    slower = _distinct([(c, why) for c, why in reasons if c.fits and why != EQUAL_TO_WINNER])
    too_large = [(c, why) for c, why in reasons if not c.fits]
    of_stages = [next((r for r in slower[losers:] if _stage(r[0]) == stage), None) for stage in (1, 2, 3)]
    equal = sum(why == EQUAL_TO_WINNER for _, why in reasons)
    lines = [
        f"search      {len(ranked)} choices, {len(too_large)} too large; step times are the expected ones",
        f"  {winner.step_s:8.2f} s  {winner.name}" + (f" ({equal} others are equal)" if equal else ""),
    ]
    shown = [*slower[:losers], *(r for r in of_stages if r is not None), *too_large[:3]]
    width = max((len(candidate.name) for candidate, _ in shown), default=0)
    for candidate, why in shown:
        step = f"{candidate.step_s:8.2f} s" if candidate.fits else " " * 10
        lines.append(f"  {step}  {candidate.name:<{width}} {why}")
    if paper:
        lines.append("for comparison, with tensor (TP) and pipeline (PP) parallelism, which this recipe does not have")
    lines += [f"  {p.estimate.step_s:8.2f} s  {p.name}" for p in paper[:4]]
    return "\n".join(lines)


def _distinct(slower: Sequence[tuple[Candidate, str]]) -> list[tuple[Candidate, str]]:
    """Without those that differ from a faster one in prefetching or persistence alone and are as fast within some percent."""
    fastest: dict[tuple[object, ...], float] = {}
    found = []
    for candidate, why in slower:
        work = candidate.plan.work
        key = (_stage(candidate), work.ep, work.accumulation, work.run.recompute)
        if candidate.step_s > 1.05 * fastest.get(key, 0.0):
            fastest[key] = candidate.step_s
            found.append((candidate, why))
    return found


def _stage(candidate: Candidate) -> int:
    return candidate.plan.work.ds.zero_optimization.stage


def clusters_table(plans: dict[str, tuple[str, Plan]]) -> str:
    """A row for each ds_config: its choices and what is planned of it. Names map to (model, plan)."""
    head = [
        "file", "model", "GPUs", "ZeRO", "EP", "micro-batch", "accumulation", "precision", "recompute", "exchange parts", "weights", "batch, tokens",
        "peak GiB", "exposed", "MFU", "days for 1T", "GPU-hours", "kUSD",
    ]  # fmt: skip
    rows = []
    for name, (model, plan) in plans.items():
        work, low, high = plan.work, plan.cost(OPTIMISTIC), plan.cost(CONSERVATIVE)
        mid = plan.cost(EXPECTED)
        rows.append(
            [
                f"`{name}.json`", model, f"{work.ranks:,} {work.cluster.accelerator.name}",
                str(work.ds.zero_optimization.stage), str(work.ep), str(work.ds.train_micro_batch_size_per_gpu),
                str(work.accumulation), "bf16" if work.ds.bf16_enabled else "fp32", _recompute(work),
                str(work.exchange_parts), "kept" if _keeps_weights(work) else "gathered twice",
                f"{work.tokens_per_step:,}", f"{plan.memory.peak_gib:.1f}", f"{plan.expected.exposed_share:.1%}",
                f"{plan.mfu(EXPECTED):.1%}", f"{mid.days:,.1f} ({low.days:,.1f} to {high.days:,.1f})",
                f"{mid.gpu_hours:,.0f}", f"{mid.usd / 1000:,.0f}",
            ]
        )  # fmt: skip
    return markdown_table(head, rows, left=2)


def _recompute(work: Workload) -> str:
    return f"{work.run.recompute}, {work.ds.recipe.kept_gib:g} GiB" if work.kept.layers else work.run.recompute


def _keeps_weights(work: Workload) -> bool:
    """Whether they stay from the forward to the backward pass."""
    zero = work.ds.zero_optimization
    return zero.stage < 3 or zero.stage3_max_reuse_distance >= NO_LIMIT
