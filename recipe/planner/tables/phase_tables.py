"""Phases of a run as a table for a terminal, and what docs/design.md says of the flagship's phases and of long sequences."""

from __future__ import annotations

from collections.abc import Sequence

from recipe.planner.calibration import Calibration, describe_calibration
from recipe.planner.phases import PhasePlan, total_cost
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC

HEAD = (
    "phase", "tokens", "length", "steps", "batch: tokens", "sequences", "micro x acc", "peak GiB", "step s", "MFU", "days", "kUSD",
)  # fmt: skip


def phase_rows(planned: Sequence[PhasePlan]) -> list[list[str]]:
    """A row for each phase, and one of all together."""
    rows = [_row(p) for p in planned]
    cost = total_cost(planned)
    total = ["all", _tokens(sum(p.tokens for p in planned)), "", f"{sum(p.phase.steps for p in planned):,}"]
    return [*rows, [*total, *[""] * 6, f"{cost.days:.1f}", f"{cost.usd / 1000:,.0f}"]]


def _row(p: PhasePlan) -> list[str]:
    phase, plan, cost = p.phase, p.plan, p.plan.cost(EXPECTED)
    return [
        phase.name, _tokens(p.tokens), f"{phase.run.data.seq_length:,}", f"{phase.steps:,}", _tokens(phase.tokens_per_step),
        f"{phase.ds.train_batch_size:,}", f"{phase.ds.train_micro_batch_size_per_gpu} x {plan.work.accumulation}",
        f"{plan.memory.peak_gib:.1f} of {plan.usable_gib:.1f}", f"{plan.expected.step_s:.2f}", f"{plan.mfu(EXPECTED):.1%}",
        f"{cost.days:.1f}", f"{cost.usd / 1000:,.0f}",
    ]  # fmt: skip


def describe_phases(planned: Sequence[PhasePlan], calibration: Calibration | None = None) -> str:
    """For a terminal: the table, how far the totals may be off, and with which measured constants it was planned."""
    rows = [list(HEAD), *phase_rows(planned)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if not number else cell.rjust(width) for number, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip
    low, mid, high = (total_cost(planned, assumed) for assumed in (OPTIMISTIC, EXPECTED, CONSERVATIVE))
    work = planned[0].plan.work
    price = planned[0].plan.usd_per_gpu_hour
    measured = [] if calibration is None else ["", *describe_calibration(calibration, work.cluster)]
    return "\n".join([
        f"cluster     {work.ranks:,} x {work.cluster.accelerator.name}, ZeRO-{work.ds.zero_optimization.stage}, experts over {work.ep} ranks",
        *measured,
        "",
        *(line.rstrip() for line in lines),
        "",
        f"time        {mid.days:.1f} days ({low.days:.1f} to {high.days:.1f}), checkpoints and failures included",
        f"cost        {mid.gpu_hours:,.0f} GPU-hours ({low.gpu_hours:,.0f} to {high.gpu_hours:,.0f}), "
        f"{mid.usd:,.0f} USD ({low.usd:,.0f} to {high.usd:,.0f}) at {price:.2f} a GPU-hour",
    ])  # fmt: skip


def _tokens(number: float) -> str:
    """Such as 1.5T, 32B, 8.4M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
