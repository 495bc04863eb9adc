"""What a contender of benchmarks/train_step.py is, on which device, and the settings that all have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recipe.base.model_shape import ModelShape

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
LEARNING_RATE, CLIP, ADAMW = 1e-4, 1.0, {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

Enter = Callable[[str], None]  # told of the phases of `recipe.telemetry.phases` as they begin


@dataclass(frozen=True)
class Case:
    """What all contenders train."""

    shape: ModelShape
    seq_length: int
    micro_batch: int
    recompute: str = "none"  # that ours does; no other contender is given another


@dataclass(frozen=True)
class Contender:
    """A model and its training step: tokens [B, S + 1] on the host to the mean loss on the device."""

    model: nn.Module
    step: Callable[[np.ndarray, Enter], torch.Tensor]
    counts: list[torch.Tensor] | None = None  # ours appends each step's assignments [layers, experts], on the device
    as_installed: str | None = (
        None  # which of the packages that it works with were there, and what stood in for the others
    )
