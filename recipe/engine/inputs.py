"""From a batch to the model's arguments on the device, without the host waiting for a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from recipe.base.settings import Compute
from recipe.data.batch import Batch


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
