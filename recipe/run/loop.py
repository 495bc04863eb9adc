"""The training loop: batch, forward, backward, step, report, checkpoint; and a clean stop when asked."""

from __future__ import annotations

import signal
from types import FrameType

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.schedule import learning_rate
from recipe.data.batch import Batch, make_batch
from recipe.run.checkpoint import CheckpointStore, TrainState
from recipe.run.engine import control_routing
from recipe.run.metrics import MetricsWriter, Throughput
from recipe.run.mitigations import Mitigator
from recipe.run.routing_metrics import routing_metrics
from recipe.run.startup import Launch
from recipe.run.step import run_step


class StopRequest:
    """Set by SIGTERM or SIGINT on any rank; the ranks learn of it together after the step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def read_batches(launch: Launch, state: TrainState) -> list[Batch]:
    """This rank's micro-batches of the next step."""
    ds, facts = launch.ds, launch.tokenizer
    reads = [
        launch.order.micro_batch(
            state.sequences, micro_step, dist.get_rank(), dist.get_world_size(), ds.train_micro_batch_size_per_gpu
        )
        for micro_step in range(ds.gradient_accumulation_steps)
    ]
    return [
        make_batch(
            sequences,
            sources,
            eod_id=facts["eod_id"],
            pad_id=facts.get("pad_id"),
            document_attention=launch.run.data.document_attention,
        )
        for sequences, sources in reads
    ]


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, launch: Launch, state: TrainState) -> float:
    lr = learning_rate(launch.run.schedule, state.tokens + launch.tokens_per_step)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    return lr


def train(engine: deepspeed.DeepSpeedEngine, launch: Launch, store: CheckpointStore, state: TrainState) -> bool:
    """Train from `state` to the end of the schedule.

    Returns:
        True at the end of the schedule; False when a signal asked to stop before it, after a checkpoint.
    """
    run, total_steps = launch.run, launch.last_step(state.step, state.tokens)
    stop = StopRequest()
    control = control_routing(
        engine, run.routing, seq_length=run.data.seq_length, sources=launch.order.names, seed=run.seed
    )
    mitigator = Mitigator(control, state.mitigations)
    bias_frozen_from = run.schedule.total_tokens * (1 - run.routing.bias_freeze_share)
    throughput = Throughput(launch.shape, run.data.seq_length, dist.get_world_size())
    writer = MetricsWriter(run.run_dir, total_steps, state.step + 1) if dist.get_rank() == 0 else None
    engine.train()
    stopped = False
    while state.step < total_steps and not stopped:
        step = state.step + 1
        logged = step in (1, total_steps) or step % run.logging.every_steps == 0
        lr = set_learning_rate(engine, launch, state)
        loss, sums = run_step(
            engine,
            control,
            run.compute,
            read_batches(launch, state),
            step=step,
            observing=logged,
            update_bias=state.tokens < bias_frozen_from,
        )
        state.advance(launch.ds.train_batch_size, launch.tokens_per_step)
        throughput.count(launch.tokens_per_step)
        # One small all-reduce: the global batch's loss, and whether any rank was asked to stop.
        shared = torch.stack(
            (loss.double(), torch.tensor(float(stop.signal is not None), dtype=torch.float64, device=loss.device))
        )
        dist.all_reduce(shared)
        stopped = shared[1].item() > 0
        if sums is not None:
            values = {
                "tokens": state.tokens,
                "loss": shared[0].item() / dist.get_world_size(),
                "lr": lr,
                "grad_norm": float(engine.get_global_grad_norm()),
                **throughput.take(),
                **routing_metrics(sums, control),
            }
            events = mitigator.update(step, values)
            state.mitigations = mitigator.state
            if writer is not None:
                writer.write(step, values, events)
        if stopped or step == total_steps or step % run.checkpoint.every_steps == 0:
            path = store.save(engine, state)
            if writer is not None:
                print(f"checkpoint {path}", flush=True)
    if writer is not None:
        writer.close()
    return state.step >= total_steps
