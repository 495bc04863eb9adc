"""The training loop of a phase: batch, forward, backward, step, then what follows a step; and a clean stop when asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.run_config.learning_rate import last_before_decay, rate_in_phase
from recipe.base.tables import StageLines
from recipe.checkpoints.average import begun
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.data.batch import Batch, make_batch
from recipe.data.prefetch import Prefetcher
from recipe.engine.build import control_routing
from recipe.engine.moe.routing_control import StepSums
from recipe.engine.step import run_step
from recipe.engine.step_guard import Rewind, StepGuard, Unsound, Verdict
from recipe.evaluation.downstream.in_training import tasks_in_training
from recipe.evaluation.held_out import evaluate_engine
from recipe.run.checkpoint_files import checkpoint_name
from recipe.run.job import Job, ProfiledSteps
from recipe.run.phases.ds_configs import ds_config_path
from recipe.run.phases.recorded import phase_of
from recipe.run.reports import say
from recipe.safety.corruption import Corruption, check_for_corruption
from recipe.safety.mitigations import Mitigator
from recipe.safety.stragglers import StepTime, compare, timed_collectives
from recipe.safety.watchdog import Watchdog
from recipe.telemetry.metrics import MetricsWriter
from recipe.telemetry.profiling import StepProfiler
from recipe.telemetry.routing_metrics import routing_metrics
from recipe.telemetry.throughput import Throughput
from recipe.training.stopping import StopRequest

LAST_BEFORE_DECAY = "the last before the decay"
STEPS_TO_PROVE = 2  # that a stop waits for one that is applied, to save a state that is known to be sound


def read_batches(job: Job, sequences: int) -> list[Batch]:
    """This rank's micro-batches of the step that begins after so many sequences of the phase."""
    ds, facts = job.ds, job.tokenizer
    reads = [
        job.order.micro_batch(
            sequences, micro_step, dist.get_rank(), dist.get_world_size(), ds.train_micro_batch_size_per_gpu
        )
        for micro_step in range(ds.gradient_accumulation_steps)
    ]
    return [
        make_batch(
            tokens,
            sources,
            eod_id=facts["eod_id"],
            pad_id=facts.get("pad_id"),
            document_attention=job.run.data.document_attention,
            missing=missing,
        )
        for tokens, sources, missing in reads
    ]


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, job: Job, state: TrainState) -> float:
    lr = rate_in_phase(job.phases, job.number, state.tokens + job.tokens_per_step)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    return lr


def every(steps: int | None, step: int) -> bool:
    return steps is not None and step % steps == 0


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, or a phase of it.

    Args:
        kind: finished: at the end of the schedule; next_phase: at the end of a phase before the last; stopped: asked to before
            the end; all after a checkpoint.
            rewind: a spike that skipping steps does not end; corruption: a rank computes other bits.
        spike, corruption: which.
    """

    kind: Literal["finished", "next_phase", "stopped", "rewind", "corruption"]
    spike: Rewind | None = None
    corruption: Corruption | None = None


@dataclass(frozen=True)
class StepDone:
    """A step whose update was applied or skipped, as the hooks see it.

    Args:
        begun: when the step began, on the monotonic clock.
        sums: of the routers, where the step is logged.
        step_time: where the step's collectives were timed.
        stops: the run stops after this step since it was asked to.
        ends: the phase ends with this step, and the schedule with that of the last phase.
    """

    step: int
    begun: float
    lr: float
    verdict: Verdict
    sums: StepSums | None
    step_time: StepTime | None
    stops: bool
    ends: bool


@dataclass(frozen=True)
class Hook:
    """What is done after the steps that it is due after; an outcome that it returns ends the attempt at once."""

    act: Callable[[StepDone], Outcome | None]
    due: Callable[[StepDone], bool] = lambda done: True


class Training:
    """One phase of a run, from `state` to its end or until the run is asked to stop.

    Args:
        job: in the phase.
        writer: of metrics and events, on rank 0.
        run_dir: where a profile is written.
        profiled: steps of which rank 0 writes a profile.
        stages: of the start, which ends with the first step.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        job: Job,
        store: CheckpointStore,
        state: TrainState,
        watchdog: Watchdog,
        stop: StopRequest,
        writer: MetricsWriter | None,
        run_dir: Path,
        profiled: ProfiledSteps | None = None,
        stages: StageLines | None = None,
    ):
        run = job.run
        self.engine, self.job, self.store, self.state = engine, job, store, state
        self.watchdog, self.stop, self.writer = watchdog, stop, writer
        self.last_step = state.step + job.phase.steps_from(state.tokens)  # of the phase
        self.control = control_routing(
            engine, run.routing, seq_length=run.data.seq_length, sources=job.order.names, seed=run.seed
        )
        self.mitigator = Mitigator(self.control, state.mitigations)
        self.guard = StepGuard(engine, run.numerics, state.guard, votes=self._votes, before_update=store.before_update)
        self.throughput = Throughput(job.shape, run.data.seq_length, dist.get_world_size(), run.compute, job.kept)
        self._ranks_compared: dict[str, Any] = {}  # of the last step whose collectives were timed
        self._stages = stages
        self.batches = Prefetcher(lambda sequences: read_batches(job, sequences))
        self._begun_at, self._stop_asked = state.step, 0  # step gone on from; steps since a stop was asked for
        self._applied: deque[int] = deque(maxlen=2)  # where the data of the last applied steps begin, in sequences
        self._skipped_here = 0  # sequences left out of this rank's micro-batches
        self._skipped_sequences = 0.0  # of all ranks'
        self._first_sequence = state.sequences
        self.profiler: StepProfiler | None = None
        if writer is not None and profiled is not None and state.step < profiled.first <= self.last_step:
            self.profiler = StepProfiler(engine.module, profiled, run_dir / "profiles")
        store.unmark(LAST_BEFORE_DECAY, self._is_last_before_decay)
        self._begin_average()
        self.after_step = self.hooks()

    def hooks(self) -> list[Hook]:
        """What follows a step, in this order: a save comes after what it holds, and the profile has all of the step."""
        run = self.job.run
        return [
            Hook(self._count_damaged_data),
            Hook(self._compare_ranks, lambda done: done.step_time is not None),
            Hook(self._report, lambda done: done.sums is not None),
            Hook(self._check_corruption, lambda done: every(run.watch.corruption_check_every_steps, done.step)),
            Hook(self._average, self._average_is_due),
            Hook(self._evaluate, self._evaluation_is_due),
            Hook(self._score_tasks, self._tasks_are_due),
            Hook(self._save, self._save_is_due),
            Hook(self._tell_of_checkpoints),
            Hook(self._end_profiled_step),
            Hook(self._measure_step),
        ]

    def run(self) -> Outcome:
        """Train until an outcome; `state` stands after the last step.

        Raises:
            UserError: the run cannot go on, or its last checkpoint could not be written; on all ranks alike.
        """
        try:
            self._tell_of_phase()
            outcome = self._train()
            if outcome.kind in ("finished", "next_phase", "stopped"):
                self._finish(outcome)
            elif outcome.kind == "rewind" and len(self._applied) > 1:  # on data that the last update was not made from
                self._try_weights()  # the spike's data alone may be to blame, and the checkpoint before them sound
            return outcome
        finally:
            if self.profiler is not None:
                self.profiler.close()

    def _train(self) -> Outcome:
        self.engine.train()
        while self.state.step < self.last_step or self.guard.in_doubt:
            if (outcome := self._step()) is not None:
                return outcome
        return self._end_of_phase()

    def _end_of_phase(self) -> Outcome:
        return Outcome("finished" if self.job.is_last_phase else "next_phase")

    def _tell_of_phase(self) -> None:
        """Where a phase begins, of a run that has several."""
        job, state = self.job, self.state
        if not job.config.phases or state.sequences != state.first_sequence:
            return
        message = (
            f"phase {job.number} of {len(job.phases)}, {job.phase.name}, begins: {job.phase.steps_from(state.tokens):,} steps of "
            f"{job.ds.train_batch_size:,} sequences of {job.run.data.seq_length:,}"
        )
        facts = {"phase": job.number, "name": job.phase.name, "ds_config": str(ds_config_path(job))}
        self._tell([{"event": "phase", "step": state.step, "message": message, **facts}])

    def _finish(self, outcome: Outcome) -> None:
        """Leave a checkpoint of weights that are known to be sound, and say how the attempt ended, if it did."""
        self.watchdog.progress.enter("finishing")
        if not self.guard.in_doubt:
            verdict = self._try_weights()
            if verdict is not None and verdict.proof is False:
                self._stop_unsound(f"the update of step {self.state.step:,} has ruined the weights: {verdict.message}")
        self.store.finish()
        self._tell(self.store.take_events())
        if not self.guard.in_doubt:
            self.store.check_saved(self.state.step)
        if self.writer is not None and outcome.kind != "next_phase":
            self.writer.event(self._end(outcome))
            self.stop.answered()

    def _try_weights(self) -> Verdict | None:
        """Do the last but one of the applied steps again, without its update, and tell the store whether the weights are sound.

        Forward and backward: weights can be ruined and still give a loss.

        Returns:
            what the step would have come to; None without one that was applied since the start.
        """
        if not self._applied:
            return None
        self.guard.trial = True
        run_step(
            self.engine,
            self.control,
            self.job.run.compute,
            self.batches.take(self._applied[0], self.state.sequences),
            step=self.state.step + 1,
            observing=False,
            update_bias=False,
            guard=self.guard,
        )
        verdict = self.guard.verdict()
        if verdict.proof is not None:
            self.store.prove(verdict.proof)
        return verdict

    def _end(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.kind == "finished":
            return {"event": "finished", "step": self.state.step, "message": "training finished"}
        why = self.stop.reason() or "signal"  # to another rank
        saved = ", which was skipped and is not saved" if self.guard.in_doubt else ""
        message = f"stopped by a {why} after step {self.state.step:,}{saved}; --resume auto goes on"
        return {"event": "stopped", "step": self.state.step, "why": why, "message": message}

    def _step(self) -> Outcome | None:
        """One optimizer step and what follows it; the outcome, if the attempt ends with it."""
        state, step, begun = self.state, self.state.step + 1, time.monotonic()
        lr = set_learning_rate(self.engine, self.job, state)
        if self.profiler is not None:
            self.profiler.begin_step(step)
        self._enter("reading", step)
        batches = self.batches.take(state.sequences, state.sequences + self.job.ds.train_batch_size)
        self._skipped_here += sum(batch.missing for batch in batches)
        sums, step_time = self._update(step, batches)
        self.watchdog.first_step_is_done()
        if self._stages is not None and state.step == self._begun_at:
            self._stages.done(
                "first step done, with what it compiles" if self.job.run.compute.compile else "first step done"
            )
        verdict = self._commit()
        try:
            self._tell(self._recorded(step))
        except Rewind as spike:
            return Outcome("rewind", spike=spike)
        state.guard = self.guard.state
        self._stop_asked += verdict.totals["stop"] > 0
        stops = self._stop_asked > (STEPS_TO_PROVE if self.guard.in_doubt else 0)
        ends = step >= self.last_step and not self.guard.in_doubt
        done = StepDone(step, begun, lr, verdict, sums, step_time, stops, ends)
        for hook in self.after_step:
            if hook.due(done) and (outcome := hook.act(done)) is not None:
                return outcome
        if not stops:
            return None
        return self._end_of_phase() if ends and self.job.is_last_phase else Outcome("stopped")

    def _update(self, step: int, batches: Sequence[Batch]) -> tuple[StepSums | None, StepTime | None]:
        """Forward, backward and update; the routers' sums of a logged step, and the times of a sampled one."""
        run, state = self.job.run, self.state
        sampled = every(run.watch.stragglers_every_steps, step)
        with timed_collectives() if sampled else nullcontext() as step_time:
            _, sums = run_step(
                self.engine,
                self.control,
                run.compute,
                batches,
                step=step,
                observing=step in (1, self.last_step) or every(run.logging.every_steps, step),
                update_bias=state.tokens < run.schedule.total_tokens * (1 - run.routing.bias_freeze_share),
                guard=self.guard,
                enter=self._enter,
            )
        return sums, step_time

    def _commit(self) -> Verdict:
        """Count the step, and commit the checkpoint that it has proved to be sound."""
        ds, verdict = self.job.ds, self.guard.verdict()
        if verdict.applied:
            self._applied.append(self.state.sequences)
        self.state.advance(ds.train_batch_size, self.job.tokens_per_step)
        self._enter("committing")
        self.store.commit(verdict.totals, proof=verdict.proof)
        self._enter("between steps")
        self.throughput.count(self.job.tokens_per_step)
        if self.writer is not None:
            self.writer.step_is_done()
        return verdict

    def _recorded(self, step: int) -> list[dict[str, Any]]:
        """Take the step's verdict into the history; the events that it makes."""
        try:
            return self.guard.record(step, self.state.rewinds)
        except Unsound as error:
            self._stop_unsound(str(error))

    def _stop_unsound(self, why: str) -> NoReturn:
        """Raise UserError, with the checkpoint to go on from, after those with the last update are set aside."""
        last_update = self._begun_at if self.guard.last_update is None else self.guard.last_update
        newest = self.store.leave_suspect(last_update)
        self._tell(self.store.take_events())
        raise UserError(f"{why}; {newest}; lower schedule.peak_lr, look at the data or at that rank's GPU, and resume")

    def _enter(self, phase: str, step: int | None = None) -> None:
        self.watchdog.progress.enter(phase, step)
        self.throughput.phases.enter(phase)
        if self.profiler is not None:
            self.profiler.enter(phase)

    def _check_corruption(self, done: StepDone) -> Outcome | None:
        dtype = torch.bfloat16 if self.job.ds.bf16_enabled else torch.float32
        corruption = check_for_corruption(self.job.shape, self.engine.device, dtype)
        if corruption is not None:
            return Outcome("corruption", corruption=corruption)
        self.state.good_probe = done.step
        return None

    def _begin_average(self) -> None:
        """Go on with the moving average of the checkpoint that the weights are from, or begin one, and say so."""
        settings, state, store = self.job.run.checkpoint.average, self.state, self.store
        store.average = None
        if settings is None:
            return
        checkpoint = store.folder / checkpoint_name(state.step)
        store.average, anew = begun(self.engine, settings, checkpoint, state.tokens)
        if anew:
            message = f"{checkpoint.name} has no moving average of the weights; one begins with the weights of step {state.step:,}"
            self._tell([{"event": "average_begun", "step": state.step, "message": message}])

    def _average_is_due(self, done: StepDone) -> bool:
        average = self.store.average
        return average is not None and done.verdict.applied and average.due(done.step)

    def _average(self, done: StepDone) -> None:
        assert self.store.average is not None
        self.store.average.update(self.state.tokens)

    def _evaluation_is_due(self, done: StepDone) -> bool:
        return bool(self.job.held_out) and (done.ends or every(self.job.run.evaluation.every_steps, done.step))

    def _evaluate(self, done: StepDone) -> None:
        run, begun = self.job.run, time.monotonic()
        results = evaluate_engine(
            self.engine,
            run.compute,
            self.job.held_out,
            seq_length=run.data.seq_length,
            batch_size=run.evaluation.batch_size,
            eod_id=self.job.tokenizer["eod_id"] if run.data.document_attention else None,
            progress=lambda: self._enter("evaluating"),
        )
        self._enter("between steps")
        if self.writer is not None:
            self.writer.evaluation(done.step, results, time.monotonic() - begun)

    def _tasks_are_due(self, done: StepDone) -> bool:
        downstream = self.job.run.evaluation.downstream
        return downstream is not None and (done.ends or every(downstream.every_steps, done.step))

    def _score_tasks(self, done: StepDone) -> None:
        run, begun = self.job.run, time.monotonic()
        assert run.evaluation.downstream is not None
        tasks = tasks_in_training(run.evaluation.downstream, run.tokenizer, run.data.seq_length)
        scored = tasks.evaluate(self.engine, run.compute, progress=lambda: self._enter("evaluating"))
        self._enter("between steps")
        if self.writer is not None:
            seconds = time.monotonic() - begun
            self.writer.downstream(done.step, scored.as_json(), scored.tags(), seconds, tasks.summary(scored))

    def _votes(self) -> dict[str, float]:
        """What this rank adds to the step's exchange."""
        return {
            "stop": float(self.stop.reason() is not None),
            "skipped_sequences": float(self._skipped_here),
            **self.store.votes(),
        }

    def _decays_next(self) -> bool:
        return last_before_decay(self.job.phase, self.state.tokens)

    def _save_is_due(self, done: StepDone) -> bool:
        every_steps = self.job.run.checkpoint.every_steps
        return done.stops or done.ends or self._decays_next() or every(every_steps, done.step)

    def _save(self, done: StepDone) -> None:
        """Save, unless the step was skipped: what the weights are is not known then."""
        if self.guard.in_doubt:
            message = f"no checkpoint of step {done.step:,}: the step was skipped, and the weights may be ruined"
            self._tell([{"event": "checkpoint_failed", "step": done.step, "message": message}])
        else:
            self._enter("saving")
            state, keep = self.state, LAST_BEFORE_DECAY if self._decays_next() else None
            if done.ends and not self.job.is_last_phase:
                state, keep = state.in_next_phase(), f"the last of phase {self.job.phase.name}"
            self.store.save(self.engine, state, keep=keep)
            self._enter("between steps")

    def _tell_of_checkpoints(self, done: StepDone) -> None:
        self._tell(self.store.take_events())

    def _end_profiled_step(self, done: StepDone) -> None:
        if self.profiler is not None:
            message = self.profiler.end_step(done.step, stopped=done.stops or done.ends)
            if message is not None:
                say(message)

    def _measure_step(self, done: StepDone) -> None:
        """How long before a time limit the run has to stop."""
        self.stop.needed_s = max(self.stop.needed_s, time.monotonic() - done.begun + self.store.took_s)

    def _is_last_before_decay(self, manifest: dict[str, Any]) -> bool:
        """Whether a checkpoint is, in the schedule of now, which may have moved since it was taken."""
        saved, schedule = phase_of(manifest), self.job.run.schedule
        phase = replace(saved, run=saved.run.model_copy(update={"schedule": schedule}))
        return last_before_decay(phase, manifest["train_state"]["tokens"])

    def _report(self, done: StepDone) -> None:
        assert done.sums is not None
        values = {
            "tokens": self.state.tokens,
            "loss": done.verdict.loss,
            "lr": done.lr,
            "grad_norm": done.verdict.grad_norm,
            "skipped_steps": self.guard.skipped,
            "skipped_sequences": self._skipped_sequences,
            **self._ranks_compared,
            **self.throughput.take(),
            **self._data_position(),
            **routing_metrics(done.sums, self.control),
        }
        if self.writer is not None:
            self.writer.write(done.step, values)
        if done.verdict.applied:
            self._tell(self.mitigator.update(done.step, values))
            self.state.mitigations = self.mitigator.state

    def _data_position(self) -> dict[str, dict[str, float]]:
        """What has been read of each source."""
        order, place = self.job.data.order, (self.job.number, self.job.read, self.state.sequences)
        return {"source_tokens": order.tokens_read(*place), "source_epochs": order.epochs(*place)}

    def _compare_ranks(self, done: StepDone) -> None:
        assert done.step_time is not None
        self._ranks_compared, message = compare(done.step_time, self.job.run.watch.straggler_ratio)
        if message is not None:
            self._tell([{"event": "straggler", "step": done.step, "message": message, **self._ranks_compared}])

    def _count_damaged_data(self, done: StepDone) -> None:
        total = done.verdict.totals["skipped_sequences"]
        if total > self._skipped_sequences:
            self._skipped_sequences = total
            message = (
                f"{total:.0f} sequences in damaged blocks of shards left out since the start, or the phase's beginning"
            )
            self._tell([{"event": "data_skipped", "step": done.step, "message": message}])
        read, share = self.state.sequences - self._first_sequence, self.job.run.data.max_damaged_share
        if total > self.job.ds.train_batch_size + share * read:
            raise UserError(
                f"{total:,.0f} of the {read:,} sequences read since the start are damaged, more than a batch and "
                f"data.max_damaged_share {share:g}: look at the file system, restore the shards, and resume"
            )

    def _tell(self, events: Sequence[dict[str, Any]]) -> None:
        if self.writer is not None:
            for event in events:
                self.writer.event(event)
