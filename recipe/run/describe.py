"""What a run would do, for a dry run and the head of the log."""

from __future__ import annotations

from collections.abc import Callable

from recipe.base.run_config.learning_rate import rate_in_phase
from recipe.base.run_config.routing import Routing
from recipe.base.settings import RunConfig
from recipe.data.mixture import CYCLE
from recipe.huggingface.architectures import export_note
from recipe.run.job import Job
from recipe.run.phases.ds_configs import ds_config_path


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
        *_describe_schedule(job),
        *_describe_mixture(job),
        *_of_phases(job, lambda at: [f"routing     {_describe_routing(at.run.routing)}"]),
        *_of_phases(job, lambda at: [f"compute     {_describe_compute(at.run)}"]),
        *_of_phases(job, _describe_kept),
        *_describe_evaluation(job),
    ]
    if (note := export_note(job.shape, job.run.routing)) is not None:
        lines.append(f"export      {note}")
    return "\n".join([*lines, f"run folder  {job.run.run_dir}, {checkpoint}"])


def _of_phases(job: Job, described: Callable[[Job], list[str]]) -> list[str]:
    """Lines about the first phase, and about each other one where they differ from those of the one before."""
    lines, before = [], None
    for phase in job.phases:
        now = described(job.at(phase.number))
        if now != before:
            lines += [line if before is None else f"{line} (from phase {phase.number})" for line in now]
        before = now
    return lines


def _describe_model(job: Job) -> list[str]:
    ds, shape = job.ds, job.shape
    total, active = sum(shape.parameters().values()), sum(shape.active_parameters().values())
    return [
        f"model       {total:,} parameters, {active:,} active; {shape.num_moe_layers} MoE layers of "
        f"{shape.n_routed_experts} experts, top {shape.num_experts_per_tok}, {shape.n_shared_experts} shared",
        f"parallel    {ds.world_size} ranks, ZeRO-{ds.zero_optimization.stage}, expert parallel size "
        f"{ds.expert_parallel.autoep_size}, {'bf16' if ds.bf16_enabled else 'fp32'}",
    ]


def _describe_schedule(job: Job) -> list[str]:
    schedule = job.run.schedule
    if not job.config.phases:
        return [
            f"batch       {_batch(job)} = {job.tokens_per_step:,} tokens a step",
            f"schedule    {job.total_steps:,} steps, {job.total_steps * job.tokens_per_step:,} tokens, {schedule.kind}, "
            f"peak lr {schedule.peak_lr:g}",
        ]
    return [
        f"schedule    {job.total_steps:,} steps, {schedule.total_tokens:,} tokens in {len(job.phases)} phases, {schedule.kind}, "
        f"peak lr {schedule.peak_lr:g}",
        *(line for phase in job.phases for line in _describe_phase(job.at(phase.number))),
    ]


def _batch(job: Job) -> str:
    return f"{job.ds.train_batch_size:,} sequences of {job.run.data.seq_length:,}"


def _describe_phase(job: Job) -> list[str]:
    phase, ds = job.phase, job.ds
    begin, end = (rate_in_phase(job.phases, phase.number, tokens) for tokens in (phase.first_tokens, phase.end_tokens))
    rope = (
        f", rope_theta {job.shape.rope_parameters.rope_theta:g}"
        if phase.settings and phase.settings.rope_parameters
        else ""
    )
    return [
        f"phase {phase.number:<6}{phase.name}: tokens {phase.first_tokens:,} to {phase.end_tokens:,} in {phase.steps:,} steps of "
        f"{_batch(job)} = {job.tokens_per_step:,} tokens, lr {begin:.3g} to {end:.3g}{rope}",
        f"            micro-batches of {ds.train_micro_batch_size_per_gpu} times {ds.gradient_accumulation_steps}: "
        f"{ds_config_path(job)}",
    ]


def _describe_mixture(job: Job) -> list[str]:
    last = job.at(len(job.phases) - 1)
    place = last.number, last.read, last.phase.steps * last.ds.train_batch_size
    tokens, epochs = job.data.order.tokens_read(*place), job.data.order.epochs(*place)
    total = sum(tokens.values())
    lines = [
        f"mixture     {name:<12} {count / total:6.1%} of the tokens, {count:,.0f} tokens, {epochs[name]:.2f} epochs"
        for name, count in tokens.items()
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
