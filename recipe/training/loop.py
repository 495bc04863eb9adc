"""The training loop: batch, forward, backward, step, report, checkpoint; and a clean stop when asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NoReturn

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.settings import Schedule
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.data.batch import Batch, make_batch
from recipe.data.prefetch import Prefetcher
from recipe.engine.build import control_routing
from recipe.engine.routing_control import StepSums
from recipe.engine.step import run_step
from recipe.engine.step_guard import Rewind, StepGuard, Unsound, Verdict
from recipe.evaluation.held_out import evaluate_engine
from recipe.run.folder import RunFolder
from recipe.run.job import Job, ProfiledSteps
from recipe.run.reports import say
from recipe.safety.corruption import check_for_corruption
from recipe.safety.mitigations import Mitigator
from recipe.safety.stragglers import StepTime, compare, timed_collectives
from recipe.safety.watchdog import Watchdog
from recipe.telemetry.metrics import MetricsWriter
from recipe.telemetry.profiling import StepProfiler
from recipe.telemetry.routing_metrics import routing_metrics
from recipe.telemetry.throughput import Throughput
from recipe.training.schedule import learning_rate
from recipe.training.stopping import StopRequest

LAST_BEFORE_DECAY = "the last before the decay"
STEPS_TO_PROVE = 2  # that a stop waits for one that is applied, to save a state that is known to be sound


def read_batches(job: Job, sequences: int) -> list[Batch]:
    """This rank's micro-batches of the step that begins after so many sequences of the run."""
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
    lr = learning_rate(job.run.schedule, state.tokens + job.tokens_per_step)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    return lr


def every(steps: int | None, step: int) -> bool:
    return steps is not None and step % steps == 0


def last_before_decay(schedule: Schedule, tokens: int, tokens_per_step: int) -> bool:
    """Whether the next step is the first one of WSD's decay."""
    starts = schedule.total_tokens - schedule.decay_tokens
    return schedule.kind == "wsd" and tokens <= starts < tokens + tokens_per_step


class Training:
    """One attempt of a run, from `state` to the end of the schedule or until it is asked to stop.

    Args:
        time_limit_s: of this process, from its start; see `StopRequest`.
        profiled: steps of which rank 0 writes a profile.

    Raises:
        UserError: `profiled` are beyond the last step.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        job: Job,
        store: CheckpointStore,
        state: TrainState,
        folder: RunFolder,
        watchdog: Watchdog,
        time_limit_s: float | None = None,
        profiled: ProfiledSteps | None = None,
    ):
        run = job.run
        self.engine, self.job, self.store, self.state = engine, job, store, state
        self.watchdog, self.stop = watchdog, StopRequest(folder.stop_request, time_limit_s)
        self.total_steps = job.last_step(state.step, state.tokens)
        self.control = control_routing(
            engine, run.routing, seq_length=run.data.seq_length, sources=job.order.names, seed=run.seed
        )
        self.mitigator = Mitigator(self.control, state.mitigations)
        self.guard = StepGuard(engine, run.numerics, state.guard, votes=self._votes, before_update=store.before_update)
        self.throughput = Throughput(job.shape, run.data.seq_length, dist.get_world_size(), run.compute)
        if profiled is not None and (message := profiled.problem(self.total_steps)):
            raise UserError(message)
        self._open = ExitStack()  # what is closed on every way out
        self.writer = None
        if dist.get_rank() == 0:
            log = run.logging
            self.writer = MetricsWriter(
                folder, self.total_steps, state.step + 1, log.prometheus_port, log.prometheus_host
            )
            self._open.callback(self.writer.close)
        self.profiler = None
        if profiled is not None and dist.get_rank() == 0 and state.step < profiled.first:
            self.profiler = StepProfiler(engine.module, profiled, folder.path / "profiles")
            self._open.callback(self.profiler.close)
        self._ranks_compared: dict[str, Any] = {}  # of the last step whose collectives were timed
        self.batches = Prefetcher(lambda sequences: read_batches(job, sequences))
        self._begun_at, self._stop_asked = state.step, 0  # step resumed from; steps since a stop was asked for
        self._applied: deque[int] = deque(maxlen=2)  # where the data of the last applied steps begin, in sequences
        self._skipped_here = 0  # sequences left out of this rank's micro-batches
        self._skipped_sequences = 0.0  # of all ranks'
        self._first_sequence = state.sequences
        store.unmark(LAST_BEFORE_DECAY, self._is_last_before_decay)

    def run(self) -> bool:
        """Train.

        Returns:
            True at the end of the schedule; False when a stop was asked for before it; both after a checkpoint.

        Raises:
            Rewind: a spike that skipping steps does not end; `state` stands after it.
            Corruption: a rank computes other bits; `state` stands after that step.
            UserError: the run cannot go on, or its last checkpoint could not be written; on all ranks alike.
        """
        with self._open:
            try:
                return self._run()
            except Rewind:
                if len(self._applied) > 1:  # on data that the last update was not made from
                    self._try_weights()  # the spike's data alone may be to blame, and the checkpoint before them sound
                raise

    def _run(self) -> bool:
        self.engine.train()
        stopped = False
        while not stopped and (self.state.step < self.total_steps or self.guard.in_doubt):
            stopped = self._step()
        finished = self.state.step >= self.total_steps and not self.guard.in_doubt
        self.watchdog.place.enter("finishing")
        if not self.guard.in_doubt:
            verdict = self._try_weights()
            if verdict is not None and verdict.proof is False:
                self._stop_unsound(f"the update of step {self.state.step:,} has ruined the weights: {verdict.message}")
        self.store.finish()
        self._tell(self.store.take_events())
        if not self.guard.in_doubt:
            self.store.check_saved(self.state.step)
        if self.writer is not None:
            self.writer.event(self._end(finished))
            self.stop.answered()
        return finished

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

    def _end(self, finished: bool) -> dict[str, Any]:
        if finished:
            return {"event": "finished", "step": self.state.step, "message": "training finished"}
        why = self.stop.reason() or "signal"  # to another rank
        saved = ", which was skipped and is not saved" if self.guard.in_doubt else ""
        message = f"stopped by a {why} after step {self.state.step:,}{saved}; --resume auto goes on"
        return {"event": "stopped", "step": self.state.step, "why": why, "message": message}

    def _step(self) -> bool:
        """One optimizer step and what follows it; returns whether a stop is asked for."""
        job, state, run = self.job, self.state, self.job.run
        step, begun = state.step + 1, time.monotonic()
        logged = step in (1, self.total_steps) or every(run.logging.every_steps, step)
        lr = set_learning_rate(self.engine, job, state)
        if self.profiler is not None:
            self.profiler.begin_step(step)
        self._enter("reading", step)
        batches = self.batches.take(state.sequences, state.sequences + job.ds.train_batch_size)
        self._skipped_here += sum(batch.missing for batch in batches)
        sampled = every(run.watch.stragglers_every_steps, step)
        with timed_collectives() if sampled else nullcontext() as step_time:
            _, sums = run_step(
                self.engine,
                self.control,
                run.compute,
                batches,
                step=step,
                observing=logged,
                update_bias=state.tokens < run.schedule.total_tokens * (1 - run.routing.bias_freeze_share),
                guard=self.guard,
                enter=self._enter,
            )
        self.watchdog.first_step_is_done()
        state.advance(job.ds.train_batch_size, job.tokens_per_step)
        verdict = self.guard.verdict()
        if verdict.applied:
            self._applied.append(state.sequences - job.ds.train_batch_size)
        self._enter("settling")
        self.store.commit(verdict.totals, proof=verdict.proof)
        self._enter("between steps")
        self.throughput.count(job.tokens_per_step)
        if self.writer is not None:
            self.writer.step_is_done()
        self._tell(self._recorded(step))
        state.guard = self.guard.state
        self._tell_of_skipped_data(step, verdict.totals["skipped_sequences"])
        if step_time is not None:
            self._compare_ranks(step, step_time)
        if sums is not None:
            self._report(step, lr, verdict, sums)
        if every(run.watch.probe_every_steps, step):
            dtype = torch.bfloat16 if job.ds.bf16_enabled else torch.float32
            check_for_corruption(job.shape, self.engine.device, dtype)
            state.good_probe = step
        self._stop_asked += verdict.totals["stop"] > 0
        stopped = self._stop_asked > (STEPS_TO_PROVE if self.guard.in_doubt else 0)
        ends = step >= self.total_steps and not self.guard.in_doubt
        if job.held_out and (ends or every(run.evaluation.every_steps, step)):
            self._evaluate(step)
        self._save(step, stopped or ends)
        self._tell(self.store.take_events())
        if self.profiler is not None and (message := self.profiler.end_step(step, stopped=stopped)) is not None:
            say(message)
        self.stop.needed_s = max(self.stop.needed_s, time.monotonic() - begun + self.store.took_s)
        return stopped

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
        self.watchdog.place.enter(phase, step)
        self.throughput.phases.enter(phase)
        if self.profiler is not None:
            self.profiler.enter(phase)

    def _evaluate(self, step: int) -> None:
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
            self.writer.evaluation(step, results, time.monotonic() - begun)

    def _votes(self) -> dict[str, float]:
        """What this rank adds to the step's exchange."""
        return {
            "stop": float(self.stop.reason() is not None),
            "skipped_sequences": float(self._skipped_here),
            **self.store.votes(),
        }

    def _save(self, step: int, ends: bool) -> None:
        """Save what is due after a step, unless it was skipped: what the weights are is not known then."""
        run = self.job.run
        decays_next = last_before_decay(run.schedule, self.state.tokens, self.job.tokens_per_step)
        if not (ends or decays_next or every(run.checkpoint.every_steps, step)):
            return
        if self.guard.in_doubt:
            message = f"no checkpoint of step {step:,}: the step was skipped, and the weights may be ruined"
            self._tell([{"event": "checkpoint_failed", "step": step, "message": message}])
        else:
            self._enter("saving")
            self.store.save(self.engine, self.state, keep=LAST_BEFORE_DECAY if decays_next else None)
            self._enter("between steps")

    def _is_last_before_decay(self, manifest: dict[str, Any]) -> bool:
        """Whether a checkpoint is, in the schedule of now, which may have moved since it was taken."""
        batch_tokens = manifest["ds_config"]["train_batch_size"] * manifest["run_config"]["data"]["seq_length"]
        return last_before_decay(self.job.run.schedule, manifest["train_state"]["tokens"], batch_tokens)

    def _report(self, step: int, lr: float, verdict: Verdict, sums: StepSums) -> None:
        values = {
            "tokens": self.state.tokens,
            "loss": verdict.loss,
            "lr": lr,
            "grad_norm": verdict.grad_norm,
            "skipped_steps": self.guard.skipped,
            "skipped_sequences": self._skipped_sequences,
            **self._ranks_compared,
            **self.throughput.take(),
            **self._data_position(),
            **routing_metrics(sums, self.control),
        }
        if self.writer is not None:
            self.writer.write(step, values)
        if verdict.applied:
            self._tell(self.mitigator.update(step, values))
            self.state.mitigations = self.mitigator.state

    def _data_position(self) -> dict[str, dict[str, float]]:
        """What has been read of each source."""
        order, sequences = self.job.order, self.state.sequences
        read = {name: count * self.job.run.data.seq_length for name, count in order.read(sequences).items()}
        return {"source_tokens": read, "source_epochs": order.epochs(sequences)}

    def _compare_ranks(self, step: int, step_time: StepTime) -> None:
        self._ranks_compared, message = compare(step_time, self.job.run.watch.straggler_ratio)
        if message is not None:
            self._tell([{"event": "straggler", "step": step, "message": message, **self._ranks_compared}])

    def _tell_of_skipped_data(self, step: int, total: float) -> None:
        if total > self._skipped_sequences:
            self._skipped_sequences = total
            message = f"{total:.0f} sequences in damaged blocks of shards left out since the start"
            self._tell([{"event": "data_skipped", "step": step, "message": message}])
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
