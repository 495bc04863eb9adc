"""What is not matmuls: memory that is streamed, launches, values that the host waits for, copies to and from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.kernel_cases.measuring import (
    CUDA,
    DEVICE,
    DTYPE,
    Act,
    Case,
    NotPossible,
    Sizes,
    random,
    synchronize,
    timed,
    wall_s,
    without_gradients,
)
from recipe.model.fusion import fused
from recipe.model.modeling import rms_norm

EPS = 1e-5
REPEATS = 7
READS = 10  # values read in one measurement
BEHIND = 20  # small kernels that a layer launches after a read, about as many as permute rows received


def norm_bytes(elements: int, compiled: bool) -> int:
    """Of `rms_norm`, forward, without its weight: written out, each of its six operations reads and writes; compiled, all at once.

    To fp32, square, mean, times 1/rms, to the input's precision, times the weight.
    """
    n, full = DTYPE.itemsize, 4
    if compiled:
        return elements * 2 * n
    to_fp32, square, mean, scaled = n + full, 2 * full, full, 2 * full
    if n == full:
        to_fp32 = 0  # it is fp32 already, and is not converted
    back = full + n if n != full else 0
    return elements * (to_fp32 + square + mean + scaled + back + 2 * n)


def adamw_bytes(elements: int) -> int:
    """fp32 weights and both moments read and written, gradients read."""
    return elements * 4 * (2 + 2 + 2 + 1)


def streaming_cases(sizes: Sizes) -> Iterator[Case]:
    tokens, D, size = sizes.tokens, sizes.shape.hidden_size, sizes.copied_bytes
    yield Case("streaming", "copy", {"bytes": size}, lambda: _copy(size), moved=2 * size, dtype=torch.uint8)
    for compiled in (False, True):
        yield Case(
            "streaming", "norm, compiled" if compiled else "norm", {"tokens": tokens, "hidden": D},
            partial(_norm, tokens, D, compiled), moved=norm_bytes(tokens * D, compiled),
            cost_s=8.0 if compiled else 1.0,
        )  # fmt: skip
    yield Case("streaming", "adamw", {"elements": sizes.updated}, lambda: _adamw(sizes.updated),
               moved=adamw_bytes(sizes.updated), dtype=torch.float32, note="torch.optim.AdamW, fused")  # fmt: skip


def _copy(size: int) -> dict[str, Any]:
    source, target = (torch.zeros(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return timed(lambda: target.copy_(source))


def _norm(tokens: int, hidden: int, compiled: bool) -> dict[str, Any]:
    x, weight = random(tokens, hidden), random(hidden)
    with fused(compiled):
        return timed(without_gradients(lambda: rms_norm(x, weight, EPS)))


def _adamw(elements: int) -> dict[str, Any]:
    weight = torch.zeros(elements, device=DEVICE, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    return timed(optimizer.step)


def medians(measure: Callable[[], float]) -> dict[str, Any]:
    """The median of several measurements after one that does not count."""
    measure()
    seconds = [measure() for _ in range(REPEATS)]
    return {"seconds": statistics.median(seconds), "runs": REPEATS, "slowest_s": max(seconds)}


def launch_cases(sizes: Sizes) -> Iterator[Case]:
    tiny = {"elements": 1, "launches": sizes.launches}
    yield Case("launch", "eager", tiny, lambda: _launches(sizes.launches))
    yield Case("launch", "compiled function", {"tokens": 8, "hidden": sizes.shape.hidden_size, "launches": sizes.launches},
               lambda: _compiled_calls(sizes), note="a call of the compiled rms_norm, guards and launch", cost_s=8.0)  # fmt: skip


def _launches(launches: int) -> dict[str, Any]:
    """With a result and a node of the graph for each, as a model's have them."""
    x = torch.zeros(1, device=DEVICE, dtype=DTYPE, requires_grad=True)

    def act() -> None:
        for _ in range(launches):
            torch.add(x, 1)

    return medians(lambda: wall_s(act) / launches)


def _compiled_calls(sizes: Sizes) -> dict[str, Any]:
    x, weight = random(8, sizes.shape.hidden_size), random(sizes.shape.hidden_size)

    @torch.no_grad()
    def act() -> None:
        for _ in range(sizes.launches):
            rms_norm(x, weight, EPS)

    with fused():
        return medians(lambda: wall_s(act) / sizes.launches)


def host_read_cases(sizes: Sizes) -> Iterator[Case]:
    note = "of a step with reads beyond the same without: the device idles until the host has launched again"
    for name, behind in (("item", 0), (f"item, {BEHIND} small kernels behind it", BEHIND)):
        yield Case("host_read", name, {"square": sizes.square // 2, "reads": READS, "small_kernels": behind},
                   partial(medians, partial(_read_s, sizes, behind)), note=note)  # fmt: skip


def _read_s(sizes: Sizes, behind: int) -> float:
    """Seconds that reading a value after each of several matmuls adds to them; the queue is never empty otherwise."""
    size = sizes.square // 2
    a, small = random(size, size), torch.zeros(1, device=DEVICE)

    def act(read: bool) -> Act:
        @torch.no_grad()
        def steps() -> None:
            for _ in range(READS):
                product = a @ a
                if read:
                    product[0, 0].item()
                else:
                    product[0, 0]
                for _ in range(behind):
                    small.add_(1)

        return steps

    wall_s(act(False))
    return max(0.0, (wall_s(act(True)) - wall_s(act(False))) / READS)


def host_copy_cases(sizes: Sizes) -> Iterator[Case]:
    size = sizes.copied_bytes
    for direction in ("device to host", "host to device"):
        yield Case("host_copy", direction, {"bytes": size}, partial(_host_copy, size, direction),
                   moved=size, dtype=torch.uint8, note="host memory pinned as a snapshot's is")  # fmt: skip


def _host_copy(size: int, direction: str) -> dict[str, Any]:
    """On a stream of its own, as a snapshot copies."""
    if not CUDA:
        raise NotPossible("without a GPU no memory is pinned, and a copy does not leave the host")
    from recipe.checkpoints.snapshot import pinned

    host, device = pinned(size), torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target, source = (host, device) if direction == "device to host" else (device, host)
    stream = torch.cuda.Stream()

    def copy_s() -> float:
        synchronize()
        begun = time.perf_counter()
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        stream.synchronize()
        return time.perf_counter() - begun

    return medians(copy_s)
