"""One optimizer step over one global batch: forward, backward, and what routing needs between and after.

Every valid token of the global batch weighs the same, whatever the ranks and accumulation steps it falls
into: a micro-batch's loss is its sum times the ranks over the global batch's tokens, since the engine
averages gradients over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from recipe.base.model_shape import IGNORED
from recipe.base.settings import Compute
from recipe.data.batch import Batch
from recipe.engine.moe.routing_control import MicroBatch, RoutingControl, StepSums
from recipe.engine.step_guard import StepGuard


def run_step(
    engine: deepspeed.DeepSpeedEngine,
    control: RoutingControl,
    compute: Compute,
    batches: Sequence[Batch],
    *,
    step: int,
    observing: bool,
    update_bias: bool,
    guard: StepGuard | None = None,
    enter: Callable[[str], None] = lambda phase: None,
) -> tuple[torch.Tensor, StepSums | None]:
    """Train on this rank's micro-batches of one step.

    Args:
        observing, update_bias: whether the routers' sums are returned, and their biases moved.
        guard: decides whether the weights are changed, and with them the biases.
        enter: told of each phase that begins.

    Returns:
        this rank's part of the loss, on the device: its mean over ranks is the mean loss in nats per valid
        token of the global batch; and the routers' sums if the step is observed.
    """
    enter("forward")
    device = engine.device
    routed_weight, loss_weight = token_weights(batches, device)
    control.begin_step(step, token_weight=routed_weight, observing=observing)
    if control.starts_cold and update_bias:
        _count(engine, control, compute, batches, enter)
        control.end_cold_start()
    if control.counts_first:
        _count(engine, control, compute, batches, enter)
        control.end_counting()
    total, targets = torch.zeros((), device=device), sum(int((b.targets != IGNORED).sum()) for b in batches)
    for number, batch in enumerate(batches):
        enter("forward")
        control.begin_micro_batch(_micro_batch(number, batch, device))
        summed = summed_loss_of(engine, compute, model_inputs(batch), torch.from_numpy(batch.targets))
        control.end_forward()
        loss = summed * loss_weight
        total += loss.detach()
        enter("backward")
        engine.backward(loss * len(batches))  # which the engine divides by the accumulation steps
        enter("update")
        if guard is not None:
            guard.offer(total, targets)
        engine.step()
    applied = guard is None or guard.verdict().applied
    return total, control.end_step(update_bias=update_bias and applied)


@torch.no_grad()
def _count(
    engine: deepspeed.DeepSpeedEngine,
    control: RoutingControl,
    compute: Compute,
    batches: Sequence[Batch],
    enter: Callable[[str], None],
) -> None:
    """Forward passes for what the routers see."""
    for number, batch in enumerate(batches):
        enter("counting")
        control.begin_micro_batch(_micro_batch(number, batch, engine.device))
        engine(**on_device(for_attention(model_inputs(batch), compute), engine.device), logits_to_keep=1)
        control.end_forward()


def token_weights(batches: Sequence[Batch], device: torch.device) -> torch.Tensor:
    """Ranks over the tokens of the global batch that are routed, and over those that have a loss; all ranks together."""
    counted = [(b.valid.sum(), (b.targets != IGNORED).sum()) for b in batches]
    tokens = on_device(torch.tensor(np.sum(counted, axis=0), dtype=torch.float64), device)
    dist.all_reduce(tokens)
    return (dist.get_world_size() / tokens.clamp(min=1)).float()


def summed_loss_of(
    engine: deepspeed.DeepSpeedEngine, compute: Compute, inputs: dict[str, torch.Tensor], targets_BS: torch.Tensor
) -> torch.Tensor:
    """Sum of the next-token losses in nats of arguments on the host, without the logits ever existing whole."""
    inputs = on_device(for_attention(inputs, compute), engine.device)
    targets = on_device(targets_BS, engine.device).reshape_as(inputs["input_ids"])
    return engine(**inputs, targets=targets, loss_chunk_tokens=compute.loss_chunk_tokens).loss


def _micro_batch(number: int, batch: Batch, device: torch.device) -> MicroBatch:
    valid, sources = (on_device(torch.from_numpy(array), device) for array in (batch.valid, batch.sources))
    return MicroBatch(number, valid.flatten(), sources.repeat_interleave(valid.shape[1]))


# From a batch to the model's arguments on the device, without the host waiting for a GPU.


def model_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """The model's arguments for a batch's tokens, on the host."""
    inputs = {"input_ids": torch.from_numpy(batch.tokens)}
    if batch.positions is not None:
        inputs["position_ids"] = torch.from_numpy(batch.positions)
    return inputs


def for_attention(inputs: dict[str, torch.Tensor], compute: Compute) -> dict[str, Any]:
    """The same arguments, on the host, in the form in which the attention keeps documents apart.

    Flash attention takes documents of one row by their lengths. Counted here, they are known; from positions on a GPU
    transformers would find them anew in every layer, and wait for it.
    """
    if "position_ids" not in inputs or compute.attention != "flash_attention_2":
        return inputs
    joined: dict[str, Any] = {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
    positions = joined["position_ids"][0]  # rows begin documents
    starts = (positions == 0).nonzero().flatten()
    ends = F.pad(starts, (0, 1), value=positions.numel()).to(torch.int32)
    longest = int(ends.diff().max())
    return {
        **joined,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict with some, on its way to the device; anything else as it is."""
    if isinstance(value, dict):
        return {name: on_device(item, device) for name, item in value.items()}
    if not isinstance(value, torch.Tensor) or device.type == "cpu":
        return value
    return value.contiguous().pin_memory().to(device, non_blocking=True)
