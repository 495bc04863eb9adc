#!/usr/bin/env python3
"""Begin a new run from another run's checkpoint, under the DeepSpeed launcher with the new run's ranks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.ranks import is_first_rank, leave, required_world_size, say
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.reading.origin import origin_of, record_of
from recipe.run.checkpoint_files import digest, find, read_manifest
from recipe.run.identity import check_identity, differences
from recipe.run.job import Job, check_job
from recipe.run.phases.recorded import data_facts, other_data, recorded_phases, trained_phase_of
from recipe.run.records import recorded_run_config
from recipe.training.next_steps import train_command

if TYPE_CHECKING:
    from recipe.checkpoints.store import TrainState

EXAMPLE = """example: an early decay of runs/a from its step 20,000 on, in a run folder of its own
  deepspeed --num_gpus 8 recipe/branch.py --from runs/a --checkpoint step_20000 --config decay.yaml \\
      --deepspeed_config ds_configs/a100_8.json
      makes the new run folder, with the checkpoint as its first; decay.yaml is the run config of runs/a with another run_dir
      and schedule. runs/a is only read.
  deepspeed --num_gpus 8 recipe/train.py --config decay.yaml --deepspeed_config ds_configs/a100_8.json --resume auto
      trains from there

The new run keeps the weights, the state of the optimizer and the position in the schedule. It keeps the position in the data
where the new run config reads the same data in the same order; otherwise the data begin at their beginning, and the command
says why. With --weights-only the optimizer, the schedule and the data begin anew: for other data and a learning rate that is
warmed up again, as in recipe/configs/runs/continue.yaml."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="source", required=True, type=Path, help="the run folder to branch from; it is only read"
    )
    parser.add_argument("--checkpoint", help="the checkpoint to branch from, such as step_1000 (default: the newest)")
    parser.add_argument(
        "--weights-only", action="store_true", help="keep the weights alone; optimizer, schedule and data begin anew"
    )
    parser.add_argument(
        "--config",
        required=True,
        type=Path,
        help="run config (YAML) of the new run; its run_dir must not hold a run yet",
    )
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="ds_config (JSON) of the new run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def check_branch(manifest: dict[str, Any], checkpoint: Path, job: Job, *, weights_only: bool) -> list[str]:
    """Refuse a run that cannot go on from a checkpoint.

    Returns:
        why the data begin at their beginning, a sentence each; none where the order of the data goes on.

    Raises:
        UserError: another model, tokenizer, or, with its states, optimizer.
    """
    recorded, current = (
        {"model": _weights_of(identity["model"]), "tokenizer": identity["tokenizer"]}
        for identity in (manifest["identity"], job.identity)
    )
    check_identity(recorded, current, checkpoint, "give the new run the same model and tokenizer")
    if weights_only:
        return []
    tokens, total = manifest["train_state"]["tokens"], job.run.schedule.total_tokens
    if tokens >= total:
        raise UserError(
            f"{checkpoint} is {tokens:,} tokens into the schedule, and schedule.total_tokens is {total:,}; raise it, or "
            "branch with --weights-only"
        )
    before = recorded_run_config(manifest)
    optimizers = (run.optimizer.model_dump(mode="json") for run in (before, job.run))
    if problems := differences(*optimizers):
        raise UserError(
            f"the optimizer of {checkpoint} has other settings: {'; '.join(problems)}; restore them, or branch with "
            "--weights-only"
        )
    recorded, current = manifest["identity"]["data"], job.identity["data"]
    if problems := differences(recorded, current):
        return problems
    phase = manifest["train_state"].get("phase", 0)
    if phase >= len(job.phases):
        return [f"it is in phase {phase}, which the new run does not have"]
    changed = other_data(data_facts(manifest, job), job, phase)
    if changed is None:
        return []
    orders = (_order(phases[: phase + 1]) for phases in (recorded_phases(manifest), job.phases))
    return differences(*orders) or [changed]


def _weights_of(model: dict[str, Any]) -> dict[str, Any]:
    """What decides what the weights mean: not how they were drawn, nor how long texts may be."""
    return {key: value for key, value in model.items() if key not in ("initializer_range", "max_position_embeddings")}


def _order(phases: Sequence[ResolvedPhase]) -> dict[str, Any]:
    """The settings that the order of the data depends on, as the run config names them."""
    first, *others = (_order_in_phase(phase) for phase in phases)
    return {"seed": phases[0].run.seed, **first, "phases": {str(n): other for n, other in enumerate(others, start=1)}}


def _order_in_phase(phase: ResolvedPhase) -> dict[str, Any]:
    data, length = phase.run.data, "total_tokens" if phase.settings is None else "tokens"
    planned = data.mixture.max_epochs is not None or data.mixture.anneal is not None
    return {
        "seq_length": data.seq_length,
        "mixture": data.mixture.model_dump(mode="json"),
        **({length: phase.end_tokens - phase.first_tokens} if planned else {}),
    }


def state_after(manifest: dict[str, Any], job: Job, *, data_go_on: bool) -> TrainState:
    """The state with which the new run goes on from a checkpoint; a probe that fails can only go back to here."""
    from recipe.checkpoints.store import TrainState

    before = TrainState(**manifest["train_state"])
    state = TrainState(before.step, before.sequences, before.tokens, good_probe=before.step)
    if data_go_on:
        return replace(state, phase=before.phase, phase_sequences=before.phase_sequences)
    number = next(phase.number for phase in job.phases if state.tokens < phase.end_tokens)
    return replace(state, sequences=0, phase=number, phase_sequences=[0] * number)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    job = check_job(args.config, args.set, args.deepspeed_config, required_world_size())
    checkpoint = find(args.source / "checkpoints", args.checkpoint)
    manifest = read_manifest(checkpoint)
    anew = check_branch(manifest, checkpoint, job, weights_only=args.weights_only)

    from recipe.checkpoints.store import CheckpointStore, TrainState
    from recipe.engine.build import build_engine, check_compute, forget_moments, own_hyperparameters
    from recipe.engine.collectives import from_first_rank
    from recipe.engine.session import session
    from recipe.model import RecipeMoeConfig
    from recipe.run.folder import RunFolder, check_run_folder, lock_run_folder, provenance, record_start

    state = TrainState() if args.weights_only else state_after(manifest, job, data_go_on=not anew)
    job = job.at(state.phase, state.phase_sequences)
    run = job.run
    check_compute(run.compute)
    check_run_folder(job, resumes=False)
    origin = {
        "from": str(args.source.absolute()),
        "checkpoint": checkpoint.name,
        "manifest_sha256": digest(checkpoint),
        "weights_only": args.weights_only,
        **record_of(origin_of(args.source, trained_phase_of(manifest))),
    }

    def begin() -> int:
        lock_run_folder(run.run_dir)
        return record_start(job, began_from=origin)

    with session(run.watch):
        say(f"branches from {checkpoint} into the run folder {run.run_dir}: loads the checkpoint and saves it there")
        source = CheckpointStore(checkpoint.parent, run.checkpoint)
        chosen = source.choose(checkpoint.name, fall_back=False)
        assert chosen is not None
        engine = build_engine(
            RecipeMoeConfig.from_shape(job.shape),
            job.ds_raw,
            seed=run.seed,
            optimizer=run.optimizer,
            compute=run.compute,
        )
        with own_hyperparameters(engine) if args.weights_only else nullcontext():
            source.load(engine, chosen)
        if args.weights_only:
            forget_moments(engine)
        folder = RunFolder(run.run_dir, from_first_rank(begin))
        store = CheckpointStore(run.run_dir / "checkpoints", run.checkpoint, provenance(job))
        store.save_now(engine, state, keep="what the run branched from")
        if is_first_rank():
            message = f"branched from {checkpoint}{', its weights only' if args.weights_only else ''}"
            if anew:
                message += f"; the data begin at their beginning, since {'; '.join(anew)}"
            folder.event(event="branched", step=state.step, message=message, began_from=origin)
            print(f"{run.run_dir} {message}; train it with:\n  {train_command(args, job.ds.world_size)}", flush=True)


if __name__ == "__main__":
    leave(main())
