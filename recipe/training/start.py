"""One start of a run: choose a checkpoint; build the engine of its phase, restore, train, and so on with the next phase.

A phase goes on from the last one's checkpoint as a new start would, so it makes no difference whether one comes between
them. At the end orders are left for the next start.
"""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.ranks import RESTART, is_first_rank, ranks_of_this_host
from recipe.base.tables import StageLines
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.engine.build import build_engine
from recipe.engine.collectives import from_first_rank
from recipe.engine.deepspeed_private import destroy
from recipe.engine.step_guard import Rewind
from recipe.model import RecipeMoeConfig
from recipe.run.checkpoint_files import checkpoint_name, read_manifest, step_of
from recipe.run.folder import Orders, RunFolder, provenance, read_orders
from recipe.run.job import Job, ProfiledSteps
from recipe.run.records import saved_checkpoints
from recipe.run.reports import say
from recipe.safety.corruption import Corruption
from recipe.safety.watchdog import Watchdog
from recipe.telemetry.metrics import MetricsWriter
from recipe.training.loop import Outcome, Training
from recipe.training.next_steps import after_stop, after_training
from recipe.training.stopping import StopRequest

FAULTS = "RECIPE_FAULTS"  # see recipe.training.faults
GO_ON_WITHOUT = (
    "start again without that host: checkpoints since the last good corruption check are set aside, and the run goes on "
    "from the one before"
)


def train_on(
    job: Job,
    folder: RunFolder,
    watchdog: Watchdog,
    *,
    resume: str,
    time_limit_s: float | None,
    profiled: ProfiledSteps | None = None,
    stages: StageLines | None = None,
) -> int:
    """Train to the end, through all phases, or until asked to stop; all ranks together.

    Args:
        resume: never, auto, latest, or a checkpoint's name.
        stages: of the start, that are told to whoever waits for it.

    Returns:
        the exit code: 0, or RESTART to go back before a spike or without a host.
    """
    stages = stages or StageLines(lambda line: None)
    store = CheckpointStore(folder.path / "checkpoints", job.run.checkpoint, provenance(job))
    orders, saved = from_first_rank(lambda: (read_orders(folder.path), saved_checkpoints(folder.path)))
    watchdog.progress.enter("verifying the checkpoint")
    chosen = _choose(store, folder, resume, orders, [event["step"] for event in saved])
    stages.done("no checkpoint to go on from" if chosen is None else f"checkpoint {chosen.name} verified", "model")
    store.took_s = saved[-1].get("took_s", 0.0) if saved else 0.0
    spike = None if is_name(resume) else orders.rewind
    with Start(job, folder, watchdog, store, spike, time_limit_s, profiled, stages) as start:
        while (outcome := start.train_phase(chosen)).kind == "next_phase":
            _free_memory()
            chosen = store.folder / checkpoint_name(start.state.step)
    code = _exit_code(outcome, folder, store, start.state)
    _tell_what_is_next(outcome, folder)
    return code


class Start:
    """What one start trains the phases of a run with, one after the other: an engine and a loop for each, one of all else.

    Args:
        spike: the order to go back before one.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        watchdog: Watchdog,
        store: CheckpointStore,
        spike: dict[str, Any] | None,
        time_limit_s: float | None,
        profiled: ProfiledSteps | None,
        stages: StageLines,
    ):
        self.job, self.state = job, TrainState()
        self._folder, self._watchdog, self._store, self._spike = folder, watchdog, store, spike
        self._time_limit_s, self._profiled, self._stages = time_limit_s, profiled, stages
        self._stop: StopRequest | None = None  # from the first phase on
        self._writer: MetricsWriter | None = None  # on rank 0
        self._open = ExitStack()

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def train_phase(self, chosen: Path | None) -> Outcome:
        """Train from a checkpoint to the end of its phase, or an end before; from the beginning of the run without one."""
        self.state = _state_of(self.job, chosen)
        skips_data = _skip_data(self.state, self._spike)
        self.job = self.job.at(self.state.phase, self.state.phase_sequences)
        self._watchdog.phase_begins(self.state.phase)
        engine = self._restored_engine(chosen)
        if self._stop is None:
            self._stop = self._begin_training(chosen, skips_data=skips_data)
        if FAULTS in os.environ:
            from recipe.training import faults  # late: a run without faults has none of their code

            faults.install(engine, self._watchdog.progress, self._folder.attempt)
        outcome = Training(
            engine, self.job, self._store, self.state, self._watchdog, self._stop, self._writer,
            self._folder.path, self._profiled, self._stages,
        ).run()  # fmt: skip
        if outcome.kind == "next_phase":
            destroy(engine)
            self._store.release()
        return outcome

    def _restored_engine(self, chosen: Path | None) -> deepspeed.DeepSpeedEngine:
        """Build an engine and load the checkpoint; only then are younger ones, of another branch, set aside."""
        self._watchdog.progress.enter("building the engine")
        engine = _build(self.job, self._stages, "first step" if chosen is None else f"load {chosen.name}")
        self._watchdog.progress.enter("loading the checkpoint")
        if chosen is not None:
            self._store.load(engine, chosen)
            self._stages.done(f"checkpoint {chosen.name} loaded", "first step")

        def settle_branch() -> None:
            if chosen is not None:
                self._store.leave_younger(chosen)
            self._folder.checkpoints_are_set_aside()

        from_first_rank(settle_branch)
        return engine

    def _begin_training(self, chosen: Path | None, *, skips_data: bool) -> StopRequest:
        """Tell of the start, and open what tells of its steps."""
        _tell_of_start(self._folder, self._store, self.state, chosen, skips_data=skips_data)
        last_step = self.job.last_step(self.state.step, self.state.tokens)
        if self._profiled is not None and (message := self._profiled.problem(last_step)):
            raise UserError(message)
        if dist.get_rank() == 0:
            first_step = self.state.step + 1
            self._writer = MetricsWriter(self._folder, last_step, first_step, self.job.run.logging)
            self._open.callback(self._writer.close)
        return StopRequest(self._folder.stop_request, self._time_limit_s)


def is_name(resume: str) -> bool:
    """Whether a checkpoint was asked for by its name."""
    return resume.startswith("step_")


def _choose(
    store: CheckpointStore, folder: RunFolder, resume: str, orders: Orders, saved_steps: list[int]
) -> Path | None:
    """The checkpoint to go on from; None: from the beginning."""
    if resume == "never":
        return None
    name = resume if is_name(resume) else None
    chosen = store.choose(name, fall_back=resume == "auto", orders=orders, committed=saved_steps)
    if name is not None and chosen is not None:
        # Before anything that may fail: whoever starts again goes on from there, too.
        from_first_rank(partial(folder.order_left, step_of(chosen)))
    return chosen


def _build(job: Job, stages: StageLines, following: str) -> deepspeed.DeepSpeedEngine:
    run = job.run
    config = RecipeMoeConfig.from_shape(job.shape)
    built = lambda parameters: stages.done(f"model of {parameters:,} parameters built", "DeepSpeed engine")  # noqa: E731
    engine = build_engine(
        config, job.engine_ds_raw, seed=run.seed, optimizer=run.optimizer, compute=run.compute,
        seq_length=run.data.seq_length, model_is_built=built,
    )  # fmt: skip
    stages.done("DeepSpeed engine initialised", following)
    return engine


def _free_memory() -> None:
    """Give back what the engine of the last phase held, and what was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _state_of(job: Job, chosen: Path | None) -> TrainState:
    """Where a run goes on from a checkpoint: in the next phase where its own has been shortened to what is done."""
    if chosen is None:
        return TrainState()
    state = TrainState(**read_manifest(chosen)["train_state"])
    while state.phase + 1 < len(job.phases) and state.tokens >= job.phases[state.phase].end_tokens:
        state = state.in_next_phase()
    return state


def _skip_data(state: TrainState, spike: dict[str, Any] | None) -> bool:
    """Go past the data of a spike that an earlier start went back before; whether this start is the one to do so."""
    if spike is None or state.rewinds >= spike["number"]:
        return False
    state.rewinds, state.guard = spike["number"], {}
    phase = spike.get("phase", 0)  # of a version that knew no phases
    if phase == state.phase:
        state.sequences = spike["sequences"]
    else:  # the checkpoint is of a phase before, whose data go on as planned
        state.left_out = [phase, spike["sequences"]]
    return True


def _tell_of_start(
    folder: RunFolder, store: CheckpointStore, state: TrainState, chosen: Path | None, *, skips_data: bool
) -> None:
    if dist.get_rank() != 0:
        return
    message = "started from the beginning"
    if chosen is not None:
        message = f"resumed after step {state.step:,}, {state.tokens:,} tokens"
    if skips_data:
        phase, sequences = state.left_out or (state.phase, state.sequences)
        where = "" if phase == state.phase else f" of phase {phase}"
        message += f"; the data up to sequence {sequences:,}{where} are left out"
    started = {
        "event": "started",
        "step": state.step,
        "checkpoint": None if chosen is None else chosen.name,
        "message": message,
        "phase": state.phase,
        "ranks": dist.get_world_size(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    _tell(folder, *store.take_events(), started)


def _exit_code(outcome: Outcome, folder: RunFolder, store: CheckpointStore, state: TrainState) -> int:
    """Leave orders for the next start, if the attempt ended without a checkpoint of its own.

    Raises:
        UserError: some rank computes other bits, and it is not known which.
    """
    if outcome.kind in ("finished", "stopped"):
        return 0
    store.finish()
    if outcome.spike is not None:
        from_first_rank(partial(_order_rewind, folder, store, outcome.spike, state))
    if outcome.corruption is not None:
        from_first_rank(partial(_order_suspects, folder, store, outcome.corruption, state))
        if not outcome.corruption.known:
            raise UserError(f"{outcome.corruption}; {GO_ON_WITHOUT}")
    return RESTART


def _tell_what_is_next(outcome: Outcome, folder: RunFolder) -> None:
    if is_first_rank() and outcome.kind == "finished":
        ranks = dist.get_world_size()
        say(after_training(folder.path, ranks, ranks_of_this_host(ranks)))
    elif is_first_rank() and outcome.kind == "stopped":
        say(after_stop(folder.path))


def _tell(folder: RunFolder, *events: dict[str, Any]) -> None:
    for event in events:
        folder.event(**event)
        print(event["message"], flush=True)


def _order_rewind(folder: RunFolder, store: CheckpointStore, spike: Rewind, state: TrainState) -> None:
    """Leave word of it for the next start, for the supervisor, and for people."""
    folder.order_rewind(state.rewinds + 1, spike.before_step, state.phase, state.sequences, str(spike))
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
        message=f"{message}; the last good corruption check was after step {state.good_probe:,}",
    )
