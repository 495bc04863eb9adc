"""The phases of a run with all that holds in each: the run config, the model's shape and the ds_config.

A run without `phases` has one, of itself. No file is read and nothing is written; the planner, the checks before a start and the
training loop see the same phases.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from recipe.base.ds_config import DsConfig
from recipe.base.errors import ConfigError, did_you_mean
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.phase import Phase
from recipe.base.settings import RunConfig
from recipe.base.strict import strict_model

CHANGEABLE = {
    "data": ("tokens", "seq_length", "mixture", "document_attention"),
    "checkpoint": ("every_steps",),
}  # of a section; of others every key


@dataclass(frozen=True)
class ResolvedPhase:
    """A range of tokens, and what holds in it.

    Args:
        number: from 0.
        settings: as the run config has them; None in a run without phases.
        first_tokens, end_tokens: where it begins and ends as planned; its last step may go beyond by less than a batch.
        run: the run config with what changes; its own `phases` are empty.
        shape: the model's, with the phase's rotary positions and longest sequence.
        ds, ds_raw: the ds_config, with the phase's batch.
    """

    number: int
    name: str
    settings: Phase | None
    first_tokens: int
    end_tokens: int
    run: RunConfig
    shape: ModelShape
    ds: DsConfig
    ds_raw: dict[str, Any]

    @property
    def tokens_per_step(self) -> int:
        return self.ds.train_batch_size * self.run.data.seq_length

    @property
    def steps(self) -> int:
        """As planned: from its first token to its end in whole batches."""
        return self.steps_from(self.first_tokens)

    def steps_from(self, tokens: int) -> int:
        """Until its end, after so many tokens of the run."""
        return max(0, -(-(self.end_tokens - tokens) // self.tokens_per_step))


def resolve_phases(
    run: RunConfig, shape: ModelShape, ds: DsConfig, ds_raw: dict[str, Any], *, path: object = "the run config"
) -> tuple[ResolvedPhase, ...]:
    """The phases of a run, in their order; at least one.

    Args:
        ds_raw: the ds_config as its file has it, whose keys that no phase changes stay as they are.
        path: what messages call the run config.

    Raises:
        ConfigError: with every problem of every phase.
    """
    if not run.phases:
        return (ResolvedPhase(0, "run", None, 0, run.schedule.total_tokens, run, shape, ds, ds_raw),)
    problems: list[str] = []
    ends = _ends(run, problems)
    resolved = []
    for number, phase in enumerate(run.phases):
        first = ends[number - 1] if number else 0
        try:
            resolved.append(_resolved(number, phase, first, ends[number], run, shape, ds, ds_raw))
        except ConfigError as error:
            problems += [f"phases.{number} ({phase.name}): {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(path, problems)
    return tuple(resolved)


def _ends(run: RunConfig, problems: list[str]) -> list[int]:
    """Tokens of the run at which each phase ends."""
    total, given = run.schedule.total_tokens, sum(phase.tokens or 0 for phase in run.phases)
    if run.phases[-1].tokens is None and given >= total:
        problems.append(
            f"the phases before the last have {given:,} tokens, which leaves nothing of schedule.total_tokens {total:,} for the "
            "last; shorten them or raise it"
        )
    elif run.phases[-1].tokens is not None and given != total:
        problems.append(
            f"the phases have {given:,} tokens together, and schedule.total_tokens is {total:,}; make them equal, or leave out "
            "tokens of the last phase"
        )
    return [*itertools.accumulate(phase.tokens or 0 for phase in run.phases[:-1]), total]


def _resolved(
    number: int,
    phase: Phase,
    first: int,
    end: int,
    run: RunConfig,
    shape: ModelShape,
    ds: DsConfig,
    ds_raw: dict[str, Any],
) -> ResolvedPhase:
    own = _run_of(phase, run)
    own_shape = _shape_of(phase, shape, own.data.seq_length)
    batch_tokens = phase.batch_tokens or ds.train_batch_size * run.data.seq_length
    own_raw = _ds_of(phase, batch_tokens, run.data.seq_length, own.data.seq_length, ds, ds_raw)
    own_ds = strict_model(DsConfig, own_raw, "the phase's ds_config")
    return ResolvedPhase(number, phase.name, phase, first, end, own, own_shape, own_ds, own_raw)


def _run_of(phase: Phase, run: RunConfig) -> RunConfig:
    """The run config with a phase's sections."""
    values = run.model_dump(mode="json", exclude={"phases"})
    problems = []
    for section in ("data", "routing", "compute", "checkpoint"):
        changes: dict[str, Any] = getattr(phase, section)
        allowed = CHANGEABLE.get(section, tuple(values[section]))
        problems += [
            f"{section}.{key} cannot change from phase to phase; what can: {', '.join(allowed)}{did_you_mean(key, allowed)}"
            for key in changes
            if key not in allowed
        ]
        values[section] = {**values[section], **changes}
    if problems:
        raise ConfigError(phase.name, problems)
    return strict_model(RunConfig, values, phase.name)


def _shape_of(phase: Phase, shape: ModelShape, seq_length: int) -> ModelShape:
    """The model's shape with a phase's rotary positions; sequences that are longer than the model's raise its longest."""
    values = shape.model_dump(mode="json")
    values["rope_parameters"] = {**values["rope_parameters"], **phase.rope_parameters}
    if phase.rope_parameters:
        values["max_position_embeddings"] = max(shape.max_position_embeddings, seq_length)
    elif seq_length > shape.max_position_embeddings:
        raise ConfigError(
            phase.name,
            [
                f"data.seq_length {seq_length} exceeds the model's max_position_embeddings {shape.max_position_embeddings}; name the "
                "phase's rope_parameters, such as {rope_theta: 5000000}, with which it may"
            ],
        )
    return strict_model(ModelShape, values, phase.name)


def _ds_of(
    phase: Phase, batch_tokens: int, run_length: int, seq_length: int, ds: DsConfig, ds_raw: dict[str, Any]
) -> dict[str, Any]:
    """The ds_config with the phase's batch, in micro-batches of no more tokens than the ds_config's where it names none."""
    ranks, problems = ds.world_size, []
    per_rank, rest = divmod(batch_tokens, seq_length * ranks)
    if rest or not per_rank:
        below, above = (max(1, n) * seq_length * ranks for n in (per_rank, per_rank + 1))
        problems.append(
            f"{batch_tokens:,} tokens of a step are no whole number of sequences of {seq_length:,} for each of {ranks} ranks; set "
            f"batch_tokens {below} or {above}"
        )
    most = max(1, ds.train_micro_batch_size_per_gpu * run_length // seq_length)
    micro = phase.micro_batch or max(m for m in range(1, max(1, min(most, per_rank)) + 1) if max(1, per_rank) % m == 0)
    if not problems and per_rank % micro:
        problems.append(
            f"micro_batch {micro} does not divide the {per_rank} sequences of a rank and step; choose a divisor"
        )
    if problems:
        raise ConfigError(phase.name, problems)
    batch = {
        "train_batch_size": per_rank * ranks,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": per_rank // micro,
    }
    kept = {} if phase.kept_gib is None else {"recipe": {**ds_raw.get("recipe", {}), "kept_gib": phase.kept_gib}}
    return {**ds_raw, **batch, **kept}
