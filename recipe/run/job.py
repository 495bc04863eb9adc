"""Everything that is checked before a process group exists, for all phases of a run; `describe.py` says what it would do."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError, how_to_install, of_key, read_all
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_folder, glob_problem
from recipe.base.run_config.resolved import ResolvedPhase, resolve_phases
from recipe.base.settings import LOCAL_HOST, RunConfig, load_run_config
from recipe.data.loader import BatchOrder
from recipe.data.token_folder import (
    Source,
    TokenFolder,
    check_tokenizer,
    check_vocabulary,
    held_out_sources,
    tokenizer_file,
)
from recipe.planner.kept import Kept, kept_of
from recipe.run.identity import Identity, identity_of
from recipe.run.phases.run_data import RunData, folders_of
from recipe.run.records import given_budget, with_kept_gib
from recipe.run.timeouts import group_timeout_s


@dataclass(frozen=True)
class Job:
    """A run config, ds_config, model and data that fit together; and the phase of the run that is looked at.

    Args:
        config: the run config, with its phases.
        ds_config: as its file has it.
        phases: of the run, whose `ds` have the budgets for kept results that the start has.
        data: which tokens each phase sees.
        tokenizer: facts of the shards' tokenizer.
        held_out: what is evaluated during training; nothing where that is off.
        never_held_out: sources that are trained on and have no held-out tokens.
        number: of the phase.
        read: sequences that each phase before it has read.
    """

    config: RunConfig
    ds_config: dict[str, Any]
    phases: tuple[ResolvedPhase, ...]
    data: RunData
    tokenizer: dict[str, Any]
    held_out: list[Source]
    never_held_out: list[str]
    identity: Identity
    number: int = 0
    read: tuple[int, ...] = ()

    def at(self, number: int, read: Sequence[int] | None = None) -> Job:
        """The same job in a phase.

        Args:
            read: as the field says; None: as planned.
        """
        planned = [phase.steps * phase.ds.train_batch_size for phase in self.phases[:number]]
        return replace(self, number=number, read=tuple(planned if read is None else read))

    # Of the phase.

    @property
    def phase(self) -> ResolvedPhase:
        return self.phases[self.number]

    @property
    def is_last_phase(self) -> bool:
        return self.number == len(self.phases) - 1

    @property
    def run(self) -> RunConfig:
        """With what the phase changes, and without phases."""
        return self.phase.run

    @property
    def ds(self) -> DsConfig:
        """With the budget for kept results that the start has."""
        return self.phase.ds

    @property
    def ds_raw(self) -> dict[str, Any]:
        """The ds_config of its file with the phase's batch."""
        return self.phase.ds_raw

    @property
    def shape(self) -> ModelShape:
        return self.phase.shape

    @cached_property
    def order(self) -> BatchOrder:
        return self.data.of_phase(self.number, self.read)

    @property
    def tokens_per_step(self) -> int:
        return self.phase.tokens_per_step

    @property
    def kept(self) -> Kept:
        """What recomputed layers keep."""
        compute, seq_length = self.run.compute, self.run.data.seq_length
        return kept_of(
            self.shape, self.ds, recompute=compute.recompute, seq_length=seq_length, compiled=compute.compile
        )

    @property
    def engine_ds_raw(self) -> dict[str, Any]:
        """What the engine is built with."""
        if self.ds.recipe.kept_gib == given_budget(self.ds_raw):
            return self.ds_raw
        return with_kept_gib(self.ds_raw, self.ds.recipe.kept_gib)

    # Of the run.

    @property
    def total_steps(self) -> int:
        """Steps of a run that begins with these batches; the last one may go beyond schedule.total_tokens."""
        return self.at(0).last_step(0, 0)

    def last_step(self, step: int, tokens: int) -> int:
        """The step that ends the run, from `tokens` seen after `step` of this phase, maybe in other batches."""
        for phase in self.phases[self.number :]:
            steps = phase.steps_from(tokens)
            step, tokens = step + steps, tokens + steps * phase.tokens_per_step
        return step


@dataclass(frozen=True)
class ProfiledSteps:
    """Which steps of a run are profiled.

    Args:
        first, last: both included.
    """

    first: int
    last: int

    def problem(self, total_steps: int) -> str | None:
        """Why no run of so many steps comes through them."""
        if self.last > total_steps:
            return f"--profile goes to step {self.last:,}, but the run ends with step {total_steps:,}"
        return None


def check_job(
    config_path: Path, overrides: list[str], ds_path: Path, world_size: int | None, *, port_may_be_in_use: bool = False
) -> Job:
    """Read and cross-check all inputs of a run. Nothing is written.

    Args:
        config_path: the run config.
        overrides: `key=value` changes to it.
        ds_path: the ds_config.
        world_size: ranks launched; None in a dry run, where the ds_config's own number is taken.
        port_may_be_in_use: on this host, since ranks are yet to be launched, maybe on others.

    Returns:
        the inputs of a run that can start.

    Raises:
        UserError: with every problem of both configs; or with what is not there of model, data, tokenizer and outputs;
            or with every problem of their fit and the ranks; or with the first of the data.
    """
    run, (ds, ds_raw) = read_all(lambda: load_run_config(config_path, overrides), lambda: load_ds_config(ds_path))
    group_timeout_s(run.watch)  # refuses an environment that ends a hung job before the watchdog
    starts = world_size is not None or port_may_be_in_use
    shape, tokens, *_ = read_all(
        partial(of_key, "model", load_model_shape, run.model),
        partial(of_key, "data.tokens", TokenFolder, run.data.tokens),
        partial(of_key, "tokenizer", tokenizer_file, run.tokenizer),
        partial(_check_outputs, run, starts=starts),
    )
    phases = resolve_phases(run, shape, ds, ds_raw, path=config_path)
    if problems := _problems_of_fit(phases, ds.world_size if world_size is None else world_size):
        raise ConfigError(f"{ds_path} with {run.model}", problems)
    data = RunData(phases, folders_of(phases, {run.data.tokens: tokens}))
    tokenizers = [of_key("tokenizer", check_tokenizer, folder, run.tokenizer) for folder in dict.fromkeys(data.folders)]
    check_vocabulary(tokenizers[0]["vocab_size"], shape.vocab_size)
    held_out = _held_out(run)
    evaluated = None
    if run.evaluation.tokens is not None:
        evaluated = of_key("evaluation.tokens", TokenFolder, run.evaluation.tokens)
    job = Job(
        run,
        ds_raw,
        phases,
        data,
        tokens.tokenizer,
        held_out,
        never_held_out=sorted(data.names - (evaluated or tokens).sizes("held_out").keys()),
        identity=identity_of(shape, data.folders[0], run.tokenizer, evaluated),
    )
    for number in range(len(phases)):
        job.at(number).order  # noqa: B018  refuses sources that are too small for a sequence
    return job


def _problems_of_fit(phases: Sequence[ResolvedPhase], world_size: int) -> list[str]:
    """Of each phase, those that all have once."""
    problems = []
    for phase in phases:
        problems += [*phase.ds.problems_with(phase.shape, world_size), *phase.run.routing.problems_with(phase.shape)]
        if phase.run.data.seq_length > phase.shape.max_position_embeddings:
            problems.append(
                f"data.seq_length {phase.run.data.seq_length} exceeds the model's max_position_embeddings "
                f"{phase.shape.max_position_embeddings}; lower it or choose another model"
            )
    return list(dict.fromkeys(problems))


def _held_out(run: RunConfig) -> list[Source]:
    """The sources that are evaluated during training; none where that is off."""
    if run.evaluation.every_steps is None:
        return []
    key = "data.tokens" if run.evaluation.tokens is None else "evaluation.tokens"
    sources, _ = of_key(key, held_out_sources, run.evaluation.tokens or run.data.tokens, run.tokenizer)
    _check_held_out(sources)
    return sources


def _check_outputs(run: RunConfig, starts: bool) -> None:
    """What a run will write to, so that it is known now and not after hours.

    A start leaves a port that is in use to the exporter: the ranks that it takes over from may still be ending.
    """
    if (problem := glob_problem(run.run_dir)) is not None:
        raise UserError(f"run_dir {run.run_dir}: {problem}")
    for folder in (".", "checkpoints", "heartbeats", "tensorboard", "trackers"):
        check_output_folder("run_dir", run.run_dir / folder)
    check_trackers(run.logging.trackers)
    check_prometheus(run.logging.prometheus_port, run.logging.prometheus_host, may_be_in_use=starts)


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker is not installed; a folder of its name, as wandb leaves behind, is none."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"logging.trackers {name}: {how_to_install(name)}")


def check_prometheus(port: int | None, host: str = LOCAL_HOST, may_be_in_use: bool = True) -> None:
    """Refuse a port that cannot be served, before anything runs.

    Args:
        host: address to listen on, of rank 0's host; looked at where it is this host's own.
        may_be_in_use: it is another's now, and free once the run begins.

    Raises:
        UserError: prometheus-client is not installed, or this user may not listen at the port.
    """
    if port is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise UserError(f"logging.prometheus_port: {how_to_install('prometheus_client')}")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the exporter's server does
        try:
            listener.bind((LOCAL_HOST if host == LOCAL_HOST else "", port))
        except OSError as error:
            if not (may_be_in_use and error.errno == errno.EADDRINUSE):
                raise UserError(f"logging.prometheus_port {port}: {error.strerror}; choose another one") from None


def _check_held_out(sources: list[Source]) -> None:
    for source in sources:
        if source.text_bytes == 0 or all(shard.num_tokens < 2 for shard in source.shards):
            raise UserError(
                f"evaluation: the held-out shards of source '{source.name}' have no text to evaluate; tokenize "
                "with a larger held_out, or set evaluation.every_steps null"
            )
