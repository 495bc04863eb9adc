"""The phases and the order of data of a run that is recorded, in a start or in a checkpoint's manifest."""

from __future__ import annotations

from typing import Any

from recipe.base.ds_config import DsConfig
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.resolved import ResolvedPhase, resolve_phases
from recipe.base.strict import strict_model
from recipe.run.job import Job
from recipe.run.phases.run_data import RunData
from recipe.run.records import recorded_run_config

FACTS = "data_order"  # of a record


def recorded_phases(record: dict[str, Any]) -> tuple[ResolvedPhase, ...]:
    """The phases of a run as it was recorded, of the model that it trained."""
    shape = strict_model(ModelShape, record["identity"]["model"], "the recorded model")
    ds = strict_model(DsConfig, record["ds_config"], "the recorded ds_config")
    return resolve_phases(recorded_run_config(record), shape, ds, record["ds_config"], path="the recorded run config")


def phase_of(manifest: dict[str, Any]) -> ResolvedPhase:
    """The phase that a checkpoint goes on in."""
    return recorded_phases(manifest)[manifest["train_state"].get("phase", 0)]


def trained_phase_of(manifest: dict[str, Any]) -> int:
    """The number of the phase that a checkpoint's weights were last trained in: one before, where the next begins with it."""
    state = manifest["train_state"]
    phase, left_out = state.get("phase", 0), state.get("left_out") or [-1, 0]
    begins = state.get("sequences", 0) == (left_out[1] if left_out[0] == phase else 0)
    return max(0, phase - begins)


def data_facts(record: dict[str, Any], job: Job) -> list[dict[str, Any]]:
    """All that decided which data each phase of a recorded run read.

    Args:
        job: whose first phase has the tokens that were recorded: before there were phases, records had no such facts.
    """
    if FACTS in record:
        return list(record[FACTS])
    return RunData(recorded_phases(record)[:1], job.data.folders[:1]).facts


def other_data(recorded: list[dict[str, Any]], job: Job, begun: int) -> str | None:
    """How a job would read other data than was recorded in the phases up to `begun`, in a sentence; None: it does not.

    Sizes of batches do not matter, nor do lengths of phases where they move nothing.
    """
    for number, (before, now) in enumerate(zip(recorded[: begun + 1], job.data.facts, strict=False)):
        if changed := [name for name in now if before.get(name) != now[name]]:
            return f"phase {number} would read other data than it began with, since its {' and '.join(changed)} would change"
    return None
