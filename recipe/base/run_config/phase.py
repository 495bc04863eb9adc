"""The run config's `phases:` list: what changes from one range of tokens to the next."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recipe.base.strict import Section


class PhaseLearningRate(Section):
    """How the learning rate goes through a phase: from where the phase before it ended to `to`."""

    shape: Literal["constant", "linear", "cosine", "one_minus_sqrt"] = "constant"
    """`constant` stays where it is; the others go to `to`: `linear` in a line, `cosine` along half a cosine, `one_minus_sqrt` with one minus the square root
    of the phase's share that is done, which ended lowest in arXiv 2405.18392."""
    to: float | None = Field(None, ge=0)
    """Learning rate at the end of the phase; with each shape but `constant`."""

    def problem(self) -> str | None:
        if self.shape == "constant" and self.to is not None:
            return "shape constant goes nowhere, so it has no `to`; remove it, or set shape linear"
        if self.shape != "constant" and self.to is None:
            return f"shape {self.shape} needs `to`, the learning rate at the end of the phase"
        return None


class Phase(Section):
    """One range of tokens. What it does not name is as in the rest of the run config."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^\w[\w.-]*$")
    """What reports and events call it, and its ds_config's file: letters, digits, `_`, `.` and `-`. Each phase has another."""
    tokens: int | None = Field(None, gt=0)
    """Its length. Null, in the last phase alone: what is left of `schedule.total_tokens`."""
    batch_tokens: int | None = Field(None, gt=0)
    """Tokens of a step. Null: as many as the ds_config's `train_batch_size` sequences of the run's `data.seq_length` have."""
    micro_batch: int | None = Field(None, gt=0)
    """Sequences per rank and forward pass. Null: as many as have no more tokens than those of the ds_config."""
    kept_gib: float | None = Field(None, ge=0)
    """`recipe.kept_gib` in place of the ds_config's: longer sequences may leave room for fewer kept results."""
    learning_rate: PhaseLearningRate | None = None
    """Null: `schedule` gives it, as without phases."""
    data: dict[str, Any] = {}
    """Keys of the run config's `data` that change: `tokens`, `seq_length`, `mixture`, `document_attention`."""
    routing: dict[str, Any] = {}
    """Keys of `routing` that change."""
    compute: dict[str, Any] = {}
    """Keys of `compute` that change, such as `attention` for long sequences."""
    checkpoint: dict[str, Any] = {}
    """Keys of `checkpoint` that change: `every_steps`, since steps on longer sequences may take longer."""
    rope_parameters: dict[str, Any] = {}
    """Keys of the model's `rope_parameters` that change, such as `rope_theta`; `max_position_embeddings` grows with `seq_length`."""


def problems_of_phases(phases: list[Phase]) -> list[str]:
    """What the list itself shows to be impossible, one sentence each."""
    names = [phase.name for phase in phases]
    problems = [
        f"phases: two are named '{name}'; each needs a name of its own"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for number, phase in enumerate(phases):
        where = f"phases.{number} ({phase.name})"
        last = number == len(phases) - 1
        if phase.tokens is None and not last:
            problems.append(f"{where} has no tokens, its length, which only the last phase may leave out; give it")
        if phase.learning_rate is not None and (problem := phase.learning_rate.problem()) is not None:
            problems.append(f"{where}.learning_rate: {problem}")
        if phase.learning_rate is not None and number == 0:
            problems.append(
                f"{where}.learning_rate: no phase is before the first, whose rate it could go on from; leave it out"
            )
        if phase.learning_rate is None and number and phases[number - 1].learning_rate is not None:
            problems.append(
                f"{where} would go back to the rate of `schedule` after a phase with a learning_rate of its own; give it one, "
                "such as {shape: constant}"
            )
    return problems
