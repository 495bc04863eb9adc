"""How much of recomputed layers a start keeps: the ds_config's `recipe.kept_gib`, or less after a step was out of memory.

Follows from the records of the last start and of its ranks' failures, so whoever starts the run again gets the same. A
budget is lowered by each attempt that ran out of memory while something was kept, and never raised; it is the ds_config's
again once the user changes that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipe.base.hardware import GIB
from recipe.planner.kept import FILL_IMBALANCE, kept_bytes, rows_of
from recipe.run.checkpoint_files import step_of
from recipe.run.folder import RunFolder, next_checkpoint
from recipe.run.job import Job
from recipe.run.records import given_budget, read_attempts, read_failures, root_causes

STEPS = 4  # from what the ds_config's budget holds down to nothing


@dataclass(frozen=True)
class KeptBudget:
    """GiB for kept results.

    Args:
        given_gib: of the ds_config.
        was_gib: of the last start; `given_gib` where there was none, or the ds_config's was another.
        gib: of the next start.
    """

    given_gib: float
    was_gib: float
    gib: float

    @property
    def lowered(self) -> bool:
        """By the next start, for the last attempt's sake."""
        return self.gib < self.was_gib

    @property
    def sentences(self) -> list[str]:
        """For the log of a start; none where the ds_config's budget holds."""
        if self.gib == self.given_gib:
            return []
        why = "the last attempt" if self.lowered else "an earlier attempt"
        before = f", {self.was_gib:.4g} GiB before" if self.lowered else ""
        return [
            f"{why} ran out of memory: recomputed layers keep at most {self.gib:.4g} GiB of results{before}; "
            f"recipe.kept_gib {self.given_gib:.4g} of the ds_config holds again once it is changed"
        ]


def next_budgets(run_dir: Path, job: Job) -> list[KeptBudget]:
    """The budgets that the phases of a run have in its next start; that of the phase that ran out of memory is lower.

    Args:
        job: whose phases' `ds_raw` are as the user's files have them.
    """
    starts = read_attempts(run_dir)
    return [next_budget(run_dir, starts, job.at(phase.number)) for phase in job.phases]


def next_budget(run_dir: Path, starts: list[dict[str, Any]], job: Job) -> KeptBudget:
    """The budget that the job's phase has in the next start.

    Args:
        starts: of the run so far.
    """
    given = given_budget(job.ds_raw)
    used = _last_record(starts, job.number)
    if not given or used.get("given_gib") != given:
        return KeptBudget(given, given, given)
    was, held = used.get("budget_gib", given), used.get("held_gib", 0.0)
    if not held or (missing := _missing_gib(run_dir, len(starts), job.number)) is None:
        return KeptBudget(given, was, was)
    less = lowered(held, held_gib(with_budget(job, given)), missing)
    holds_something = held_gib(with_budget(job, less)) > 0
    return KeptBudget(given, was, less if holds_something else 0.0)


def _last_record(starts: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """What the last start kept in a phase; nothing where it had no such phase."""
    if not starts:
        return {}
    start = starts[-1]
    of_file = {"given_gib": given_budget(start.get("ds_config", {})), **start.get("kept", {})}
    in_phases = start.get("kept_in_phases", [of_file])
    return dict(in_phases[number]) if number < len(in_phases) else {}


def lowered(held_gib: float, whole_gib: float, missing_gib: float) -> float:
    """The budget after an attempt that kept `held_gib` ran out of memory; nothing after `STEPS` of them.

    Counted from what was held, not from its budget, which may have room for more than there is to keep.

    Args:
        whole_gib: held with the ds_config's budget.
        missing_gib: that the step asked for beyond what was free; 0 where that is not known.
    """
    return max(0.0, held_gib - max(whole_gib / STEPS, missing_gib))


def _missing_gib(run_dir: Path, attempt: int, phase: int) -> float | None:
    """What a step of the attempt lacked, if that is why it ended, and in that phase."""
    causes = root_causes(read_failures(run_dir, attempt))
    if not causes or causes[0]["kind"] != "out_of_memory" or causes[0].get("phase", 0) != phase:
        return None
    lacks = [cause.get("missing_gib", 0.0) for cause in causes if cause["kind"] == "out_of_memory"]
    return max((gib for gib in lacks if gib is not None), default=None)


def with_budget(job: Job, gib: float) -> Job:
    """The job with another budget in its phase; `ds_raw` stays as the user's file has it."""
    recipe = job.ds.recipe.model_copy(update={"kept_gib": gib})
    phase = replace(job.phase, ds=job.ds.model_copy(update={"recipe": recipe}))
    return replace(job, phases=(*job.phases[: job.number], phase, *job.phases[job.number + 1 :]))


def with_budgets(job: Job, gibs: Sequence[float]) -> Job:
    """The job with the budget of each phase."""
    used = job
    for number, gib in enumerate(gibs):
        used = with_budget(used.at(number), gib)
    return replace(used, number=job.number, read=job.read)


def held_gib(job: Job) -> float:
    """GiB of what layers keep, as the budget counts them."""
    shape, ds, kept = job.shape, job.ds, job.kept
    tokens, ep_size = ds.train_micro_batch_size_per_gpu * job.run.data.seq_length, ds.expert_parallel.autoep_size
    rows = rows_of(shape, tokens=tokens, ep_size=ep_size, imbalance=FILL_IMBALANCE)
    element, compiled, dense = 2 if ds.bf16_enabled else 4, job.run.compute.compile, shape.first_k_dense_replace
    sizes = (
        kept_bytes(shape, name, rows, moe=number >= dense, element=element, compiled=compiled)
        for number in range(shape.num_hidden_layers)
        for name in kept.of_layer(number)
    )
    return sum(sizes) / GIB


def record_of(job: Job) -> dict[str, Any]:
    """The field `kept` of attempts.jsonl: what a start keeps in a phase."""
    return {"budget_gib": job.ds.recipe.kept_gib, "held_gib": held_gib(job), "layers": dict(job.kept.layers)}


def records_of(job: Job) -> dict[str, Any]:
    """The fields of attempts.jsonl that say what a start keeps: `kept` in the first phase, `kept_in_phases` in each."""
    phases = [job.at(phase.number) for phase in job.phases]
    in_phases = [{"given_gib": given_budget(at.ds_raw), **record_of(at)} for at in phases]
    return {"kept": record_of(phases[0]), **({"kept_in_phases": in_phases} if job.config.phases else {})}


def tell_of_lowered(folder: RunFolder, budgets: Sequence[KeptBudget]) -> None:
    """Append the event of a start that has a lower budget than the one before; by rank 0."""
    for number, budget in enumerate(budgets):
        if not budget.lowered:
            continue
        checkpoint = next_checkpoint(folder.path)
        folder.event(
            event="kept_lowered",
            step=0 if checkpoint is None else step_of(checkpoint),
            message=budget.sentences[0],
            kept_gib=budget.gib,
            was_gib=budget.was_gib,
            phase=number,
        )
