"""Everything that is checked before a process group exists, and what a run would do."""

from __future__ import annotations

import errno
import importlib.util
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError, how_to_install, of_key, read_all
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_folder, glob_problem
from recipe.base.run_config.routing import Routing
from recipe.base.settings import LOCAL_HOST, RunConfig, load_run_config
from recipe.data.loader import BatchOrder
from recipe.data.mixture import CYCLE
from recipe.data.order import PhaseData, RunOrder
from recipe.data.token_folder import (
    Source,
    TokenFolder,
    check_tokenizer,
    check_vocabulary,
    held_out_sources,
    tokenizer_file,
)
from recipe.huggingface.architectures import export_note
from recipe.planner.kept import Kept, kept_of
from recipe.run.identity import Identity, identity_of
from recipe.run.records import given_budget, with_kept_gib
from recipe.run.timeouts import group_timeout_s


@dataclass(frozen=True)
class Job:
    """A run config, ds_config, model and data that fit together."""

    run: RunConfig
    ds: DsConfig  # with the budget for kept results that the start has
    ds_raw: dict[str, Any]  # as its file has it
    shape: ModelShape
    order: BatchOrder
    tokenizer: dict[str, Any]  # facts of the shards' tokenizer
    held_out: list[Source]  # that are evaluated during training; none where that is off
    never_held_out: list[str]  # sources that are trained on and have no held-out tokens
    identity: Identity

    @property
    def tokens_per_step(self) -> int:
        return self.ds.train_batch_size * self.run.data.seq_length

    @property
    def total_steps(self) -> int:
        """Steps of a run that begins with this batch; the last one may go beyond schedule.total_tokens."""
        return self.last_step(0, 0)

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

    def last_step(self, step: int, tokens: int) -> int:
        """The step that reaches schedule.total_tokens, from `tokens` seen after `step`, maybe in other batches."""
        return step + max(0, -(-(self.run.schedule.total_tokens - tokens) // self.tokens_per_step))


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
    if problems := _problems_of_fit(run, ds, shape, ds.world_size if world_size is None else world_size):
        raise ConfigError(f"{ds_path} with {run.model}", problems)
    tokenizer = of_key("tokenizer", check_tokenizer, tokens, run.tokenizer)
    check_vocabulary(tokenizer["vocab_size"], shape.vocab_size)
    order = batch_order(run, tokens)
    held_out = _held_out(run)
    evaluated = None
    if run.evaluation.tokens is not None:
        evaluated = of_key("evaluation.tokens", TokenFolder, run.evaluation.tokens)
    return Job(
        run,
        ds,
        ds_raw,
        shape,
        order,
        tokens.tokenizer,
        held_out,
        never_held_out=sorted(set(order.names) - (evaluated or tokens).sizes("held_out").keys()),
        identity=identity_of(shape, tokens, run.tokenizer, evaluated),
    )


def _problems_of_fit(run: RunConfig, ds: DsConfig, shape: ModelShape, world_size: int) -> list[str]:
    problems = [*ds.problems_with(shape, world_size), *run.routing.problems_with(shape)]
    if run.data.seq_length > shape.max_position_embeddings:
        problems.append(
            f"data.seq_length {run.data.seq_length} exceeds the model's max_position_embeddings "
            f"{shape.max_position_embeddings}; lower it or choose another model"
        )
    return problems


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


def batch_order(run: RunConfig, tokens: TokenFolder) -> BatchOrder:
    """Which tokens of its folder a run sees when.

    Raises:
        UserError: no training shards, or damaged ones.
    """
    sizes = {name: float(size) for name, size in tokens.sizes("train").items()}
    if not sizes:
        raise UserError(f"data.tokens {run.data.tokens} has no training shards; tokenize more documents")
    data = PhaseData(run.data.mixture, run.data.seq_length, run.schedule.total_tokens, str(tokens.path), sizes)
    order = RunOrder([data], run.seed)
    return order.of_phase(0, [], tokens.sources("train", order.names(0)), run.data.on_damage == "skip")


def describe(job: Job) -> str:
    """What would run, for --dry-run and the head of the log.

    Args:
        job: that `check_job` has found sound.

    Returns:
        lines that begin with what they are about.
    """
    checkpoint = f"a checkpoint every {job.run.checkpoint.every_steps:,} steps"
    lines = [
        *_describe_model(job),
        *_describe_mixture(job),
        f"routing     {_describe_routing(job.run.routing)}",
        f"compute     {_describe_compute(job.run)}",
        *_describe_kept(job),
        *_describe_evaluation(job),
    ]
    if (note := export_note(job.shape, job.run.routing)) is not None:
        lines.append(f"export      {note}")
    return "\n".join([*lines, f"run folder  {job.run.run_dir}, {checkpoint}"])


def _describe_model(job: Job) -> list[str]:
    run, ds, shape = job.run, job.ds, job.shape
    total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
    return [
        f"model       {total:,} parameters, {active:,} active; {shape.num_moe_layers} MoE layers of "
        f"{shape.n_routed_experts} experts, top {shape.num_experts_per_tok}, {shape.n_shared_experts} shared",
        f"parallel    {ds.world_size} ranks, ZeRO-{ds.zero_optimization.stage}, expert parallel size "
        f"{ds.expert_parallel.autoep_size}, {'bf16' if ds.bf16_enabled else 'fp32'}",
        f"batch       {ds.train_batch_size:,} sequences of {run.data.seq_length:,} = {job.tokens_per_step:,} tokens a step",
        f"schedule    {job.total_steps:,} steps, {job.total_steps * job.tokens_per_step:,} tokens, {run.schedule.kind}, "
        f"peak lr {run.schedule.peak_lr:g}",
    ]


def _describe_mixture(job: Job) -> list[str]:
    sequences = job.total_steps * job.ds.train_batch_size
    epochs = job.order.epochs(sequences)
    lines = [
        f"mixture     {name:<12} {count / sequences:6.1%} of the sequences, "
        f"{count * job.run.data.seq_length:,.0f} tokens, {epochs[name]:.2f} epochs"
        for name, count in job.order.read(sequences).items()
    ]
    for first, _ in job.order.stretches[1:]:
        lines.append(f"mixture     anneals from step {first * CYCLE // job.ds.train_batch_size + 1:,}")
    return lines


def _describe_routing(routing: Routing) -> str:
    capacity = routing.capacity
    watched = [name for name, settings in routing.mitigations if settings is not None]
    bias = f"bias rate {routing.bias_update_rate:g}" if routing.bias_update == "sign" else "bias by quantiles"
    limit = "" if capacity.mode == "dropless" else f" at {capacity.factor:g} per {capacity.scope.replace('_', ' ')}"
    return (
        f"{routing.aux_loss_scope.replace('_', ' ')} aux loss {routing.aux_loss_coef:g}, z-loss {routing.z_loss_coef:g}, "
        f"{bias}, {capacity.mode}{limit}; watched: {', '.join(watched) or 'nothing'}"
    )


def _describe_compute(run: RunConfig) -> str:
    compute = run.compute
    return (
        f"recompute {compute.recompute}, {compute.attention} attention "
        f"{'inside each document' if run.data.document_attention else 'over the whole sequence'}, "
        f"loss in chunks of {compute.loss_chunk_tokens:,} tokens"
        f"{', compiled' if compute.compile else ''}{', deterministic' if compute.deterministic else ''}"
    )


def _describe_kept(job: Job) -> list[str]:
    """What recomputed layers keep, where the run or the ds_config asks for it."""
    recompute, gib = job.run.compute.recompute, job.ds.recipe.kept_gib
    if recompute != "selective":
        return [f"kept        nothing: recipe.kept_gib {gib:g} is for compute.recompute selective"] if gib else []
    return [f"kept        {job.kept}, within recipe.kept_gib {gib:.4g}, of what is recomputed otherwise"]


def _describe_evaluation(job: Job) -> list[str]:
    lines = []
    if job.held_out:
        counts = ", ".join(f"{sum(s.num_tokens for s in source.shards):,} of {source.name}" for source in job.held_out)
        lines.append(f"evaluation  every {job.run.evaluation.every_steps:,} steps, held-out tokens: {counts}")
    if job.never_held_out:
        lines.append(f"evaluation  no held-out tokens of {', '.join(job.never_held_out)}: never evaluated")
    return lines
