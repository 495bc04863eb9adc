"""One start of a run: choose the checkpoint, build the engine, restore, train; and go back before a spike when need be."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.ranks import RESTART
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.engine.build import build_engine
from recipe.engine.collectives import from_first_rank
from recipe.engine.step_guard import Rewind
from recipe.model import RecipeMoeConfig
from recipe.run.checkpoint_files import step_of
from recipe.run.folder import RunFolder, provenance, read_orders
from recipe.run.job import Job, ProfiledSteps
from recipe.run.records import saved_checkpoints
from recipe.safety.corruption import Corruption
from recipe.safety.watchdog import Watchdog
from recipe.training import faults
from recipe.training.loop import Training

GO_ON_WITHOUT = "start again without that host: checkpoints since the last good probe are set aside, and the run goes on from the one before"


def train_on(
    job: Job,
    folder: RunFolder,
    watchdog: Watchdog,
    *,
    resume: str,
    time_limit_s: float | None,
    profiled: ProfiledSteps | None = None,
) -> int:
    """Train to the end or until asked to stop; all ranks together.

    Args:
        resume: never, auto, latest, or a checkpoint's name.

    Returns:
        the exit code: 0, or RESTART to go back before a spike.
    """
    run = job.run
    store = CheckpointStore(run.run_dir / "checkpoints", run.checkpoint, provenance(job))
    orders, saved = from_first_rank(lambda: (read_orders(run.run_dir), saved_checkpoints(run.run_dir)))
    name = resume if resume.startswith("step_") else None
    chosen = None
    watchdog.place.enter("verifying the checkpoint")
    if resume != "never":
        chosen = store.choose(
            name, fall_back=resume == "auto", orders=orders, committed=[event["step"] for event in saved]
        )
        if name is not None and chosen is not None:
            # Before anything that may fail: whoever starts again goes on from there, too.
            from_first_rank(partial(folder.order_left, step_of(chosen)))
    watchdog.place.enter("building the engine")
    engine = build_engine(
        RecipeMoeConfig.from_shape(job.shape),
        job.ds_raw,
        seed=run.seed,
        optimizer=run.optimizer,
        compute=run.compute,
    )
    watchdog.place.enter("loading the checkpoint")
    state = TrainState() if chosen is None else store.load(engine, chosen)
    store.took_s = saved[-1].get("took_s", 0.0) if saved else 0.0

    def settle_branch() -> None:
        if chosen is not None:
            store.leave_younger(chosen)
        folder.checkpoints_are_set_aside()

    from_first_rank(settle_branch)
    message = (
        "started from the beginning"
        if chosen is None
        else f"resumed after step {state.step:,}, {state.tokens:,} tokens"
    )
    rewind = None if name is not None else orders.rewind
    if rewind is not None and state.rewinds < rewind["number"]:
        state.sequences, state.rewinds, state.guard = rewind["sequences"], rewind["number"], {}
        message += f"; the data up to sequence {state.sequences:,} are left out"
    if dist.get_rank() == 0:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        started = {
            "event": "started",
            "step": state.step,
            "checkpoint": None if chosen is None else chosen.name,
            "message": message,
            "ranks": dist.get_world_size(),
            "device": device,
        }
        _tell(folder, *store.take_events(), started)
    if faults.VARIABLE in os.environ:
        faults.install(engine, watchdog.place, folder.attempt)
    try:
        Training(engine, job, store, state, folder, watchdog, time_limit_s, profiled).run()
    except Rewind as spike:
        store.finish()
        from_first_rank(partial(_order_rewind, folder, store, spike, state))
        return RESTART
    except Corruption as corruption:
        store.finish()
        from_first_rank(partial(_order_suspects, folder, store, corruption, state))
        if not corruption.known:
            raise UserError(f"{corruption}; {GO_ON_WITHOUT}") from None
        return RESTART
    return 0


def _tell(folder: RunFolder, *events: dict[str, Any]) -> None:
    for event in events:
        folder.event(**event)
        print(event["message"], flush=True)


def _order_rewind(folder: RunFolder, store: CheckpointStore, spike: Rewind, state: TrainState) -> None:
    """Leave word of it for the next start, for the supervisor, and for people."""
    folder.order_rewind(state.rewinds + 1, spike.before_step, state.sequences, str(spike))
    message = f"going back to the last checkpoint before step {spike.before_step:,}: {spike}"
    _tell(folder, *store.take_events(), {"event": "rewind", "step": state.step, "message": message})


def _order_suspects(folder: RunFolder, store: CheckpointStore, corruption: Corruption, state: TrainState) -> None:
    """Leave word of silent corruption for the next start, for the supervisor, and for people."""
    message = str(corruption)
    folder.order_suspects(state.good_probe, message)
    _tell(folder, *store.take_events())
    if corruption.known:
        for of_rank, host in corruption.hosts.items():
            folder.record_failure("corruption", message, rank=of_rank, host=host, step=state.step)
        print(f"{message}; {GO_ON_WITHOUT}", flush=True)
    folder.event(
        event="corruption",
        step=state.step,
        message=f"{message}; the last good probe was after step {state.good_probe:,}",
    )
