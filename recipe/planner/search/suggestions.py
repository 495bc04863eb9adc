"""Changes that would need less memory than a plan, and what each costs in time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from recipe.planner.kept import FILL_IMBALANCE
from recipe.planner.plan import Plan
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import Workload

STEP_GIB = 0.5  # of a budget that is suggested


@dataclass(frozen=True)
class Suggestion:
    """A change with its plan."""

    change: str
    peak_gib: float
    slowdown: float  # of a step, over the plan's

    def __str__(self) -> str:
        return f"{self.change}: {self.peak_gib:.1f} GiB, a step {self.slowdown:+.0%}"


def suggestions(plan: Plan, *, selective: bool = True) -> list[Suggestion]:
    """Changes that lower the peak of GPU memory.

    Args:
        plan: the plan whose peak is too high; the changes are made to its workload one at a time.
        selective: whether the run's attention allows `compute.recompute: selective`.

    Returns:
        Each change with its peak and its cost in time, the cheapest first; empty where none helps.
    """
    helping = []
    keeping = _with_results_kept(plan) if selective else ()
    for change, work in [*_changes(plan.work), *_with_less_kept(plan), *keeping]:
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


def _with_less_kept(plan: Plan) -> Iterator[tuple[str, Workload]]:
    """A smaller budget for kept results: what fits beside the rest of the peak, or nothing.

    Where the plan fits, more was needed than was planned: a quarter less than is held, as a restart takes off.
    """
    held = _held_gib(plan)
    if held > 0:
        most = 0.75 * held if plan.fits else FILL_IMBALANCE * held  # which a budget counts with
        gib = _most_that_fits(plan, plan.work, min(most, plan.work.ds.recipe.kept_gib))
        yield f"in the ds_config recipe.kept_gib {gib:g}", _with_kept(plan.work, gib)


def _with_results_kept(plan: Plan) -> Iterator[tuple[str, Workload]]:
    """Recomputed layers that keep what there is memory for, where no layer is recomputed now.

    Where the plan fits, more was needed than was planned: three quarters of what seems to fit.
    """
    if plan.work.run.recompute != "none":
        return
    selective = replace(plan.work, run=replace(plan.work.run, recompute="selective"))
    rest = Plan(_with_kept(selective, 0.0), plan.budget)
    room = 0.75 * rest.kept_gib_that_fills() if plan.fits else rest.usable_gib - rest.memory.peak_gib
    gib = _most_that_fits(plan, selective, room)
    if gib > 0:
        change = f"in the run config compute.recompute selective, in the ds_config recipe.kept_gib {gib:g}"
        yield change, _with_kept(selective, gib)


def _most_that_fits(plan: Plan, work: Workload, gib: float) -> float:
    """The largest budget up to `gib` with which the work fits; 0 where none does."""
    budgets = range(max(0, int(gib / STEP_GIB)), 0, -1)  # in steps; more of them, less fits
    fitting = bisect_left(budgets, True, key=lambda steps: Plan(_with_kept(work, steps * STEP_GIB), plan.budget).fits)
    return STEP_GIB * budgets[fitting] if fitting < len(budgets) else 0.0


def _held_gib(plan: Plan) -> float:
    """Of kept results, in the peak."""
    return plan.memory.at(plan.memory.peak_moment).get("kept results", 0.0)


def _with_kept(work: Workload, gib: float) -> Workload:
    return _with_ds(work, {"recipe": work.ds.recipe.model_copy(update={"kept_gib": gib})})


def _with_ds(work: Workload, changes: dict[str, Any]) -> Workload:
    return replace(work, ds=work.ds.model_copy(update=changes))
