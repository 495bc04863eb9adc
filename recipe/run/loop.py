"""The training loop: batch, forward, backward, step, report, checkpoint; and a clean stop when asked."""

from __future__ import annotations

import signal
from types import FrameType

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.schedule import learning_rate
from recipe.model.modeling import next_token_loss
from recipe.run.checkpoint import CheckpointStore, TrainState
from recipe.run.metrics import MetricsWriter, Throughput
from recipe.run.router_totals import RouterTotals
from recipe.run.startup import Launch


class StopRequest:
    """Set by SIGTERM or SIGINT on any rank; the ranks learn of it together after the step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


def train_step(engine: deepspeed.DeepSpeedEngine, launch: Launch, state: TrainState) -> tuple[torch.Tensor, float]:
    """One optimizer step over one global batch.

    Returns:
        this rank's mean loss in nats per token over its micro-batches, on the device; the learning rate.
    """
    ds, rank, world_size = launch.ds, dist.get_rank(), dist.get_world_size()
    lr = learning_rate(launch.run.schedule, state.tokens + launch.tokens_per_step)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    loss_sum = torch.zeros((), device=engine.device)
    for micro_step in range(ds.gradient_accumulation_steps):
        batch = launch.order.micro_batch(
            state.sequences, micro_step, rank, world_size, ds.train_micro_batch_size_per_gpu
        )
        tokens_BS = torch.from_numpy(batch).to(engine.device)
        loss = next_token_loss(engine(tokens_BS[:, :-1]).logits, tokens_BS[:, 1:])
        engine.backward(loss)
        engine.step()
        loss_sum += loss.detach()
    state.step += 1
    state.sequences += ds.train_batch_size
    state.tokens += launch.tokens_per_step
    return loss_sum / ds.gradient_accumulation_steps, lr


def train(engine: deepspeed.DeepSpeedEngine, launch: Launch, store: CheckpointStore, state: TrainState) -> bool:
    """Train from `state` to the end of the schedule.

    Returns:
        True at the end of the schedule; False when a signal asked to stop before it, after a checkpoint.
    """
    run, total_steps = launch.run, launch.total_steps
    stop = StopRequest()
    router_totals = RouterTotals(engine.module)
    throughput = Throughput(launch.shape, run.data.seq_length, dist.get_world_size())
    writer = MetricsWriter(run.run_dir, total_steps, state.step + 1) if dist.get_rank() == 0 else None
    engine.train()
    stopped = False
    while state.step < total_steps and not stopped:
        loss, lr = train_step(engine, launch, state)
        throughput.count(launch.tokens_per_step)
        # One small all-reduce: the global batch's loss, and whether any rank was asked to stop.
        shared = torch.stack(
            (loss.double(), torch.tensor(float(stop.signal is not None), dtype=torch.float64, device=loss.device))
        )
        dist.all_reduce(shared)
        stopped = shared[1].item() > 0
        last = stopped or state.step == total_steps
        if last or state.step == 1 or state.step % run.logging.every_steps == 0:
            values = {
                "tokens": state.tokens,
                "loss": shared[0].item() / dist.get_world_size(),
                "lr": lr,
                "grad_norm": float(engine.get_global_grad_norm()),
                **throughput.take(),
                **router_totals.take(),
            }
            if writer is not None:
                writer.write(state.step, values)
        if last or state.step % run.checkpoint.every_steps == 0:
            path = store.save(engine, state)
            if writer is not None:
                print(f"checkpoint {path}", flush=True)
    if writer is not None:
        writer.close()
    return state.step >= total_steps
