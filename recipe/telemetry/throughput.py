"""How fast a run is: tokens per second, FLOPs utilisation, percentiles of step times, time per phase, memory."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import numpy as np
import torch

from recipe.base.hardware import GIB, accelerator_of
from recipe.base.model_shape import ModelShape
from recipe.base.settings import Compute
from recipe.base.tables import ratio
from recipe.planner.hardware_flops import hardware_flops_per_token
from recipe.planner.kept import NOTHING, Kept
from recipe.telemetry.phases import PhaseClock


class Throughput:
    """Counts steps; a reading covers those since the last one.

    MFU is of all ranks' dense bf16 peak, and of the FLOPs that the model needs (`ModelShape.training_flops_per_token`); HFU
    also counts what is recomputed (`hardware_flops_per_token`). Both only where the GPU is a known one.

    Args:
        kept: what recomputed layers keep.
    """

    def __init__(self, shape: ModelShape, seq_length: int, world_size: int, compute: Compute, kept: Kept = NOTHING):
        known = accelerator_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._flops_per_token = shape.training_flops_per_token(seq_length)
        self._peak_flops = known.bf16_flops * world_size if known else None
        self._hardware_flops_per_token = hardware_flops_per_token(shape, seq_length, compute.recompute, kept)
        self.phases = PhaseClock()
        self._since = self._step_began = time.perf_counter()
        self._tokens = 0
        self._step_s: list[float] = []

    def count(self, tokens: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._step_s.append(now - self._step_began)
        self._step_began = now
        self._tokens += tokens

    def take(self) -> dict[str, Any]:
        now = time.perf_counter()
        passed, steps = now - self._since, len(self._step_s)
        rate = ratio(self._tokens, passed)
        p50, p95, most = np.percentile(self._step_s or [math.nan], (50, 95, 100)).tolist()
        found: dict[str, Any] = {
            "tokens_per_s": rate,
            "step_time_s": ratio(passed, steps),
            "step_time_percentiles_s": {"p50": p50, "p95": p95, "max": most},
            "phase_s": self.phases.take(steps),
            "memory_gib": memory_gib(),
        }
        if self._peak_flops is not None:
            found["mfu"] = rate * self._flops_per_token / self._peak_flops
            found["hfu"] = rate * self._hardware_flops_per_token / self._peak_flops
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._since, self._tokens, self._step_s = now, 0, []
        return found


def memory_gib() -> float:
    """The most that this rank's tensors have had on the GPU since the last reading; on CPU the process, ever."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
