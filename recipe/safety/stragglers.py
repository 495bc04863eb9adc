"""Which rank is slow: now and then one step in which every wait for a collective is timed.

Ranks wait for each other in every collective, so the time of a step says nothing about who is slow. In a sampled step
the host waits where the step does, and what is left of the step is the rank's own time: reading, computing, and
whatever else keeps it. The slowest rank has the most of it, and waits the least.

Collectives are started as they always are and waited for where they always are. To wait where they are started would
be simpler, and wrong: ZeRO-3 starts the gathers of several groups in the order of a set of parameters, which differs
between ranks, before it waits for any of them.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.ranks import host_name, located, machine_name
from recipe.engine.collectives import gathered
from recipe.telemetry.throughput import memory_gib

# What DeepSpeed's engine and the recipe call, each looked up in its module at every call: function -> the kind of its
# collective, and which of its arguments holds the bytes that count.
KINDS = {
    "all_gather": ("all_gather", 0),
    "all_gather_coalesced": ("all_gather", 0),
    "all_gather_into_tensor": ("all_gather", 0),
    "all_gather_object": ("other", None),
    "all_reduce": ("all_reduce", 0),
    "all_reduce_coalesced": ("all_reduce", 0),
    "all_to_all": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
    "allgather_fn": ("all_gather", 0),
    "barrier": ("other", None),
    "broadcast": ("other", 0),
    "gather": ("other", 0),
    "inference_all_reduce": ("all_reduce", 0),
    "reduce": ("other", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "reduce_scatter_fn": ("reduce_scatter", 1),
    "reduce_scatter_tensor": ("reduce_scatter", 1),
}
_TORCH = ("all_gather", "all_gather_object", "all_reduce", "all_to_all_single", "barrier", "broadcast")


@dataclass
class StepTime:
    """Seconds of one step on one rank."""

    host: str
    whole_s: float = 0.0
    waits_s: dict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # by kind of collective: for the other ranks and the network
    sent_bytes: Counter[str] = field(default_factory=Counter)  # by kind, as `recipe.planner.communication` counts them
    memory_gib: float = 0.0
    machine: str = ""  # its own name, where the host has another

    @property
    def waited_s(self) -> float:
        return sum(self.waits_s.values())

    @property
    def own_s(self) -> float:
        return self.whole_s - self.waited_s


@contextmanager
def timed_collectives() -> Iterator[StepTime]:
    """Time a step, and in it what is waited for collectives."""
    step_time, inside = StepTime(host_name(), machine=machine_name()), False

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kind, counted = KINDS[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # DeepSpeed's functions call torch's
                return function(*args, **kwargs)
            inside = True
            step_time.sent_bytes[kind] += _bytes(args, kwargs, counted)
            try:
                if kwargs.get("async_op"):
                    handle = function(*args, **kwargs)
                    return None if handle is None else _Handle(handle, step_time, kind)
                with _waiting(step_time, kind):
                    return function(*args, **kwargs)
            finally:
                inside = False

        return call

    replaced = [(deepspeed.comm, name) for name in KINDS] + [(dist, name) for name in _TORCH]
    originals = [(module, name, getattr(module, name)) for module, name in replaced if hasattr(module, name)]
    for module, name, function in originals:
        setattr(module, name, timed(name, function))
    begun = time.perf_counter()
    try:
        yield step_time
        _synchronize()
        step_time.memory_gib = memory_gib()
        step_time.whole_s = time.perf_counter() - begun
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def compare(step_time: StepTime, ratio: float) -> tuple[dict[str, Any], str | None]:
    """The ranks of a timed step side by side; all ranks together.

    Returns:
        metrics, and what to say of the slowest rank if its own time is `ratio` times the median's or more.
    """
    return judged(gathered(step_time), ratio)


def judged(times: list[StepTime], ratio: float) -> tuple[dict[str, Any], str | None]:
    own = [rank_time.own_s for rank_time in times]
    median = statistics.median(own)
    slowest = max(range(len(own)), key=own.__getitem__)
    over = own[slowest] / max(median, 1e-9)
    kinds = {kind for rank_time in times for kind in rank_time.sent_bytes}
    metrics = {
        "slowest_rank": slowest,
        "slowest_host": times[slowest].host,
        "slowest_over_median": over,
        "own_median_s": median,
        "waited_median_s": statistics.median(rank_time.waited_s for rank_time in times),
        "waited_least_s": min(rank_time.waited_s for rank_time in times),
        "comm_waited_s": {k: statistics.median(rank_time.waits_s[k] for rank_time in times) for k in sorted(kinds)},
        "comm_bytes": {k: statistics.mean(rank_time.sent_bytes[k] for rank_time in times) for k in sorted(kinds)},
        "memory_most_gib": max(rank_time.memory_gib for rank_time in times),
    }
    if over < ratio:
        return metrics, None
    return metrics, (
        f"rank {slowest} on {located(times[slowest].host, times[slowest].machine)} is slow: {own[slowest]:.3f} s of its own in a step, {over:.2f} times "
        f"the median; it waited {times[slowest].waited_s:.3f} s for the others, the median rank {metrics['waited_median_s']:.3f} s"
    )


class _Handle:
    """What an asynchronous collective returned, whose wait is timed."""

    def __init__(self, handle: Any, step_time: StepTime, kind: str):
        self._handle, self._step_time, self._kind = handle, step_time, kind

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        with _waiting(self._step_time, self._kind):
            return self._handle.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _bytes(args: tuple[Any, ...], kwargs: dict[str, Any], position: int | None) -> int:
    """Bytes of the tensor or tensors that stand at a position among a call's arguments."""
    given = [*args, *kwargs.values()]
    if position is None or position >= len(given):
        return 0
    tensors = given[position] if isinstance(given[position], list | tuple) else [given[position]]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


@contextmanager
def _waiting(step_time: StepTime, kind: str) -> Iterator[None]:
    """Time what is done inside, without the computation that was queued before it."""
    _synchronize()
    begun = time.perf_counter()
    yield
    _synchronize()
    step_time.waits_s[kind] += time.perf_counter() - begun


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
