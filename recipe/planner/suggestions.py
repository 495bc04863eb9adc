"""Changes that would need less memory than a plan, and what each costs in time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from recipe.planner.plan import Plan
from recipe.planner.timeline import EXPECTED
from recipe.planner.workload import Workload


@dataclass(frozen=True)
class Suggestion:
    """A change with its plan."""

    change: str
    peak_gib: float
    slowdown: float  # of a step, over the plan's

    def __str__(self) -> str:
        return f"{self.change}: {self.peak_gib:.1f} GiB, a step {self.slowdown:+.0%}"


def suggestions(plan: Plan) -> list[Suggestion]:
    """Changes that lower the peak of GPU memory.

    Args:
        plan: the plan whose peak is too high; the changes are made to its workload one at a time.

    Returns:
        Each change with its peak and its cost in time, the cheapest first; empty where none helps.
    """
    helping = []
    for change, work in _changes(plan.work):
        other = Plan(work, plan.budget)
        if other.memory.peak_gib < plan.memory.peak_gib and not work.ds.problems_with(work.shape, work.ranks):
            slowdown = other.time(EXPECTED).step_s / plan.time(EXPECTED).step_s - 1
            helping.append(Suggestion(change, other.memory.peak_gib, slowdown))
    return sorted(helping, key=lambda suggestion: (suggestion.slowdown, suggestion.peak_gib))


def _changes(work: Workload) -> Iterator[tuple[str, Workload]]:
    ds, run = work.ds, work.run
    micro_batch, accumulation = ds.train_micro_batch_size_per_gpu, ds.gradient_accumulation_steps
    if micro_batch % 2 == 0:
        sizes = {"train_micro_batch_size_per_gpu": micro_batch // 2, "gradient_accumulation_steps": accumulation * 2}
        message = ", ".join(f"{name} {value}" for name, value in sizes.items())
        yield f"in the ds_config {message}", _with_ds(work, sizes)
    if run.recompute == "none":
        recomputed = replace(work, run=replace(run, recompute="non_reentrant"))
        yield "in the run config compute.recompute non_reentrant", recomputed
    if run.loss_chunk_tokens > 256:
        chunk = run.loss_chunk_tokens // 4
        yield (
            f"in the run config compute.loss_chunk_tokens {chunk}",
            replace(work, run=replace(run, loss_chunk_tokens=chunk)),
        )
    if ds.zero_optimization.stage < 3:
        zero = ds.zero_optimization.model_copy(update={"stage": 3})
        yield (
            "in the ds_config zero_optimization.stage 3 (not for a run that has begun)",
            _with_ds(work, {"zero_optimization": zero}),
        )
    if work.ranks % (2 * work.ep) == 0 and work.shape.n_routed_experts % (2 * work.ep) == 0:
        experts = ds.expert_parallel.model_copy(update={"autoep_size": 2 * work.ep})
        yield (
            f"in the ds_config expert_parallel.autoep_size {2 * work.ep}",
            _with_ds(work, {"expert_parallel": experts}),
        )


def _with_ds(work: Workload, changes: dict[str, Any]) -> Workload:
    return replace(work, ds=work.ds.model_copy(update=changes))
