"""One start of a run: choose the checkpoint, build the engine, restore, train; and go back before a spike when need be."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.ranks import RESTART
from recipe.base.run_records import last_saved
from recipe.model import RecipeMoeConfig
from recipe.run import faults
from recipe.run.agree import from_first_rank
from recipe.run.checkpoint import CheckpointStore, TrainState
from recipe.run.engine import build_engine
from recipe.run.loop import Training
from recipe.run.probe import Corruption
from recipe.run.run_folder import RunFolder, provenance, suspect_order
from recipe.run.startup import Launch, ProfiledSteps
from recipe.run.step_guard import Rewind
from recipe.run.watchdog import Watchdog

GO_ON_WITHOUT = "start again without that host: checkpoints since the last good probe are set aside, and the run goes on from the one before"


def train_on(
    launch: Launch,
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
    run = launch.run
    store = CheckpointStore(run.run_dir / "checkpoints", run.checkpoint, provenance(launch))
    order, saved = folder.rewind_order(), from_first_rank(lambda: last_saved(run.run_dir))
    good_until = suspect_order(run.run_dir)
    chosen = None
    watchdog.place.enter("verifying the checkpoint")
    if resume != "never":
        chosen = store.choose(
            resume if resume.startswith("step_") else None,
            fall_back=resume == "auto",
            rewound=(order["number"], order["before_step"]) if order else None,
            committed=saved["step"] if saved else None,
            good_until=good_until,
        )
        if good_until is not None and dist.get_rank() == 0:
            folder.suspects_are_set_aside()
    watchdog.place.enter("building the engine")
    engine = build_engine(
        RecipeMoeConfig.from_shape(launch.shape),
        launch.ds_raw,
        seed=run.seed,
        optimizer=run.optimizer,
        compute=run.compute,
    )
    watchdog.place.enter("loading the checkpoint")
    state = TrainState() if chosen is None else store.load(engine, chosen)
    store.took_s = saved["took_s"] if saved and "took_s" in saved else 0.0
    if chosen is not None:
        store.leave_younger(chosen)
    said = (
        "started from the beginning"
        if chosen is None
        else f"resumed after step {state.step:,}, {state.tokens:,} tokens"
    )
    if order is not None and state.rewinds < order["number"]:
        state.sequences, state.rewinds, state.guard = order["sequences"], order["number"], {}
        said += f"; the data up to sequence {state.sequences:,} are left out"
    if dist.get_rank() == 0:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        started = {
            "event": "started",
            "step": state.step,
            "checkpoint": None if chosen is None else chosen.name,
            "said": said,
            "ranks": dist.get_world_size(),
            "device": device,
        }
        for event in (*store.take_events(), started):
            folder.event(**event)
            print(event["said"], flush=True)
    if faults.VARIABLE in os.environ:
        faults.install(engine, watchdog.place, folder.incarnation)
    try:
        Training(engine, launch, store, state, folder, watchdog, time_limit_s, profiled).run()
    except Rewind as rewind:
        store.finish()
        if dist.get_rank() == 0:
            folder.order_rewind(state.rewinds + 1, rewind.before_step, state.sequences, str(rewind))
            said = f"going back to the last checkpoint before step {rewind.before_step:,}: {rewind}"
            folder.event(event="rewind", step=state.step, said=said)
            print(said, flush=True)
        return RESTART
    except Corruption as corruption:
        store.finish()
        if dist.get_rank() == 0:
            _leave_word(folder, corruption, state)
        dist.barrier()  # the order is written before any rank ends
        if not corruption.known:
            raise UserError(f"{corruption}; {GO_ON_WITHOUT}") from None
        return RESTART
    return 0


def _leave_word(folder: RunFolder, corruption: Corruption, state: TrainState) -> None:
    """Of silent corruption: for the next start, for the supervisor, and for people."""
    said = str(corruption)
    folder.order_suspects(state.good_probe, said)
    if corruption.known:
        for of_rank, host in corruption.hosts.items():
            folder.record_failure("corruption", said, rank=of_rank, host=host, step=state.step)
        print(f"{said}; {GO_ON_WITHOUT}", flush=True)
    folder.event(
        event="corruption", step=state.step, said=f"{said}; the last good probe was after step {state.good_probe:,}"
    )
