"""How a kernel is timed, what a line of the result says of it, and the shapes that a GPU and a CPU get.

Legend: T tokens of a micro-batch, D hidden size, H heads, E experts of a rank, F expert width, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from recipe.base.hardware import GIB
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.strict import load_json, load_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
FORWARD, BOTH = "forward", "forward and backward"
PASSES = (FORWARD, BOTH)
BUDGET_S = 0.2 if CUDA else 0.02  # of the timed runs of a case
FEWEST, MOST = 3, 30  # timed runs of a case
# Zeroed before each run: several times an L2 cache (50 MB of an H100), so that no weight is in it as none is after other
# layers; and 0.3 ms or more of a GPU's time, in which the host launches the run that is timed.
FLUSHED_BYTES = GIB

Act = Callable[[], object]


class NotPossible(Exception):
    """A case that this machine cannot measure; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """What the kernels of a rank compute in a micro-batch."""

    shape: ModelShape
    seq_length: int
    micro_batch: int
    long_seq_length: int  # of the attention on long sequences
    ep: int  # ranks that share the experts
    square: int  # rows and columns of a matmul that only the GPU limits
    copied_bytes: int
    updated: int  # elements of an optimizer's update
    launches: int  # of small kernels, timed together

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.seq_length

    @property
    def assignments(self) -> int:
        """Rows of the experts' grouped GEMMs; with expert parallelism a rank receives as many as it sends, in the mean."""
        return self.tokens * self.shape.num_experts_per_tok


def flagship() -> Sizes:
    """30b-a3b as `ds_configs/a100_256.json` trains it."""
    ds_config = load_json(ROOT / "ds_configs/a100_256.json")
    return Sizes(
        shape=load_model_shape(ROOT / "recipe/configs/models/30b-a3b"),
        seq_length=load_yaml(ROOT / "recipe/configs/runs/pretrain_30b.yaml")["data"]["seq_length"],
        micro_batch=ds_config["train_micro_batch_size_per_gpu"],
        long_seq_length=32768,
        ep=ds_config["expert_parallel"]["autoep_size"],
        square=8192,
        copied_bytes=GIB,
        updated=100_000_000,
        launches=2000,
    )


def tiny() -> Sizes:
    """The same cases for a CPU, in seconds."""
    return Sizes(
        shape=load_model_shape(ROOT / "recipe/configs/models/tiny"),
        seq_length=64,
        micro_batch=4,
        long_seq_length=256,
        ep=2,
        square=256,
        copied_bytes=1 << 20,
        updated=100_000,
        launches=100,
    )


@dataclass(frozen=True)
class Case:
    """One line of the result: a kernel, who computes it, on what, and how it is measured."""

    kernel: str
    case: str
    shape: dict[str, Any]
    measure: Callable[[], dict[str, Any]]  # seconds, runs, and what else there is to say
    passes: str = FORWARD
    flops: float | None = None
    moved: float | None = None  # bytes that must be read and written once
    dtype: torch.dtype = DTYPE
    note: str | None = None
    cost_s: float = 1.0  # of an H200 with what is compiled and built for it; assumed, not measured
    late: int = 0  # above 0 it is worth less than it costs, and comes after all others, in this order

    def line(self, **found: Any) -> dict[str, Any]:
        seconds = found.get("seconds")
        return {
            "kernel": self.kernel,
            "case": self.case,
            "pass": self.passes,
            "shape": self.shape,
            "dtype": str(self.dtype).removeprefix("torch."),
            **found,
            "flops": self.flops,
            "bytes": self.moved,
            "flops_per_s": self.flops / seconds if self.flops and seconds else None,
            "bytes_per_s": self.moved / seconds if self.moved and seconds else None,
            **({"note": self.note} if self.note else {}),
        }


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def wall_s(act: Act) -> float:
    """Seconds until the device has done it."""
    synchronize()
    begun = time.perf_counter()
    act()
    synchronize()
    return time.perf_counter() - begun


@cache
def _flushed() -> torch.Tensor:
    return torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=DEVICE)


def _event_seconds(act: Act, runs: int) -> list[float]:
    """Seconds of each run on the device; all are in its queue before the first is looked at."""
    events = []
    for _ in range(runs):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _flushed().zero_()
        begun.record()
        act()
        ended.record()
        events.append((begun, ended))
    synchronize()
    return [begun.elapsed_time(ended) / 1e3 for begun, ended in events]


def timed(act: Act, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """Median seconds of a call after warm-up, how many runs it is of, the first call's seconds, and the memory it needs.

    The first call compiles and chooses kernels; the memory is the second's, beyond what is there before it.
    """
    first_call_s = wall_s(act)
    before = 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    once_s = wall_s(act)
    peak_gib = (torch.cuda.max_memory_allocated() - before) / GIB if CUDA else None
    runs = min(MOST, max(FEWEST, int(budget_s / once_s)))
    act()
    seconds = _event_seconds(act, runs) if CUDA else [wall_s(act) for _ in range(runs)]
    return {"seconds": statistics.median(seconds), "runs": runs, "slowest_s": max(seconds),
            "first_call_s": first_call_s, "peak_gib": peak_gib}  # fmt: skip


def gradients(act: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Act:
    """A call that computes and its gradients by `inputs`; none is added to another, as a first micro-batch's are not."""
    with torch.no_grad():
        grad = torch.randn_like(act())
    return lambda: torch.autograd.grad(act(), inputs, grad)


def without_gradients(act: Act) -> Act:
    return torch.no_grad()(act)


def pass_of(passes: str, act: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Act:
    """The forward pass alone, or both."""
    return gradients(act, inputs) if passes == BOTH else without_gradients(act)


def random(*shape: int, scale: float = 1.0, requires_grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE).mul_(scale).requires_grad_(requires_grad)
