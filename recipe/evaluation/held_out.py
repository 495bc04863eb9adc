"""Held-out loss and bits per byte, per source, exactly weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from recipe.base.errors import UserError
from recipe.base.model_shape import IGNORED
from recipe.base.settings import Compute
from recipe.base.tables import exponential, ratio
from recipe.data.batch import document_positions
from recipe.data.indexed import Shard
from recipe.data.token_folder import Source
from recipe.engine.step import on_device, summed_loss_of
from recipe.model.fusion import fused
from recipe.model.loss import summed_loss


def windows(source: Source, seq_length: int) -> list[tuple[Shard, int]]:
    """Where windows of at most seq_length + 1 tokens that share their ends begin in a source's shards.

    Every token but a shard's first is predicted exactly once.
    """
    return [(shard, start) for shard in source.shards for start in range(0, shard.num_tokens - 1, seq_length)]


@torch.no_grad()
def evaluate_source(
    loss_of: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor],
    source: Source,
    *,
    seq_length: int,
    batch_size: int,
    device: torch.device,
    eod_id: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any]:
    """Loss over all held-out tokens of one source.

    Args:
        loss_of: the model's arguments and targets [B, S], on the host -> summed loss; called the same number of times on
            every rank, since an expert-parallel model needs all of its ranks in each call.
        eod_id: given when documents attend to themselves alone, as the model was trained.

    Returns:
        tokens predicted, mean loss in nats per token and its exponential, and bits per UTF-8 byte of the text:
        the sum of all losses, end-of-document tokens included, over the bytes of the documents. Only the last
        compares models of different tokenizers.
    """
    all_windows = windows(source, seq_length)
    rounds = math.ceil(len(all_windows) / (batch_size * world_size))
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for round_number in range(rounds):
        start = (round_number * world_size + rank) * batch_size
        batch = all_windows[start : start + batch_size]
        tokens = np.zeros((batch_size, seq_length), np.int64)
        targets = np.full((batch_size, seq_length), IGNORED, np.int64)
        for row, (shard, place) in enumerate(batch):
            window = shard.read(place, place + seq_length + 1)
            tokens[row, : window.size - 1] = window[:-1]
            targets[row, : window.size - 1] = window[1:]
        inputs = {"input_ids": torch.from_numpy(tokens)}
        if eod_id is not None:
            inputs["position_ids"] = torch.from_numpy(document_positions(tokens, eod_id))
        total[0] += loss_of(inputs, torch.from_numpy(targets)).double()
        total[1] += (targets != IGNORED).sum()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    nats, predicted = total.tolist()
    return {
        "tokens": int(predicted),
        "loss": ratio(nats, predicted),
        "perplexity": exponential(ratio(nats, predicted)),
        "bits_per_byte": ratio(nats / math.log(2), source.text_bytes),
    }


def stock_loss(
    model: Any, device: torch.device, chunk_tokens: int
) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """The `loss_of` of a causal language model of transformers, without its logits ever existing whole.

    Raises:
        UserError: its logits are not the product of its last hidden states and its head's weight.
    """
    decoder, weight = model.base_model, model.get_output_embeddings().weight

    def hidden_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return decoder(**on_device(inputs, device), use_cache=False).last_hidden_state.flatten(0, 1)

    with torch.no_grad():
        tokens = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}
        logits = model(**on_device(tokens, device), use_cache=False).logits.flatten(0, 1)
        if not torch.allclose(F.linear(hidden_of(tokens), weight).to(logits.dtype), logits, rtol=0.02, atol=0.02):
            raise UserError(
                f"{type(model).__name__} changes its logits after its head's matmul, which this script leaves out; score "
                "it with recipe/evaluate_model.py downstream"
            )
    return lambda inputs, targets: summed_loss(
        hidden_of(inputs), weight, on_device(targets, device).flatten(), chunk_tokens
    )


def evaluate_engine(
    engine: deepspeed.DeepSpeedEngine,
    compute: Compute,
    sources: Sequence[Source],
    *,
    seq_length: int,
    batch_size: int,
    eod_id: int | None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """`evaluate_source` of every source, by all ranks together; the engine is left in the mode it was in.

    `progress` is called before each forward pass, for a watchdog.
    """
    training = engine.module.training
    engine.eval()

    def loss_of(inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        progress()
        return summed_loss_of(engine, compute, inputs, targets)

    with fused(False):  # what is compiled is compiled for the batches of training
        results = {
            source.name: evaluate_source(
                loss_of,
                source,
                seq_length=seq_length,
                batch_size=batch_size,
                device=engine.device,
                eod_id=eod_id,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
            )
            for source in sources
        }
    engine.train(training)
    return results
