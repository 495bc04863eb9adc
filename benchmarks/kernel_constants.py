"""Constants of the planner's kernels from the lines of benchmarks/kernel_times.py; the formulas are in benchmarks/calibration.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recipe.base.hardware import Accelerator
from recipe.planner.timing.kernels import (
    ATTENTION_BACKWARD_FLOPS,
    BACKWARD_FLOPS,
    attention_flops,
    attention_s,
    matmul_s,
    tile_share,
)

LEAST_RUNS = 3
LARGE = 4096  # rows, columns and inner dimension of a matmul that shows what a GPU reaches
ATTENTION, EAGER, COPY = "sdpa", "eager", "copy"  # cases of benchmarks/kernel_times.py
BOTH = "forward and backward"  # of its passes, beside "forward"

Line = dict[str, Any]


@dataclass(frozen=True)
class Derived:
    """A constant, or why there is none."""

    value: float | None = None
    lines: int = 0  # that it comes from
    reason: str | None = None


class _NotDerived(Exception):
    """Why a constant cannot be derived."""


def kernel_constants(lines: list[Line], gpu: Accelerator) -> dict[str, Derived]:
    """All that the lines of a GPU show; of its datasheet only the peaks count."""
    efficiency, half = _derived(lambda: _attention(lines, gpu), 2)
    return {
        "matmul_efficiency": _derived(lambda: [_matmul(lines, gpu)])[0],
        "attention_efficiency": efficiency,
        "attention_half": half,
        "hbm_efficiency": _derived(lambda: [_streaming(lines, gpu)])[0],
        "grouped_gemm": _derived(lambda: [_grouped(lines, gpu)])[0],
        "launch_s": _derived(lambda: [_launch(lines)])[0],
        "host_read_s": _derived(lambda: [_host_read(lines)])[0],
    }


def planned_kernels(lines: list[Line], before: Accelerator, after: Accelerator) -> list[dict[str, Any]]:
    """Measured matmuls, grouped GEMMs and attention beside what the planner says of their shapes."""
    planned = []
    for line in lines:
        try:
            if _failure(line) or not _is_bf16(line) or not _is_planned(line):
                continue
            seconds = [_planned_s(gpu, line) for gpu in (before, after)]
        except (KeyError, TypeError):  # a line that lacks what its formula needs; the constants' reasons say so
            continue
        words = {key: line[key] for key in ("kernel", "case", "pass", "shape")}
        planned.append(
            words | dict(zip(("planned_s", "calibrated_s"), seconds, strict=True), measured_s=line["seconds"])
        )
    return planned


def _derived(derive: Callable[[], list[Derived]], number: int = 1) -> list[Derived]:
    try:
        return derive()
    except _NotDerived as reason:
        return [Derived(reason=str(reason))] * number
    except (KeyError, TypeError) as missing:
        return [Derived(reason=f"a line lacks what its formula needs: {missing}")] * number


# Lines


def _failure(line: Line) -> str | None:
    """Why a line does not count; None if it does."""
    if line.get("failed"):
        return str(line["failed"])
    seconds, runs = line.get("seconds"), line.get("runs")
    if not isinstance(seconds, int | float) or not (math.isfinite(seconds) and seconds > 0):
        return "it has no time"
    if not isinstance(runs, int) or runs < LEAST_RUNS:
        return f"it was measured {runs} times, {LEAST_RUNS} are needed"
    return None


def _measured(lines: list[Line], kernel: str, *, bf16: bool = False) -> list[Line]:
    """The lines of a kernel that count.

    Raises:
        _NotDerived: there are none; with why each does not count.
    """
    of_kernel = [line for line in lines if line.get("kernel") == kernel]
    if not of_kernel:
        raise _NotDerived(f"no line of {kernel} was measured")
    reasons: dict[str, str] = {}
    good = []
    for line in of_kernel:
        why = _failure(line) or (f"it is in {line.get('dtype')}, not in bf16" if bf16 and not _is_bf16(line) else None)
        if why is None:
            good.append(line)
        else:
            reasons.setdefault(why, str(line.get("case")))
    if not good:
        raise _NotDerived(
            f"no line of {kernel} counts; " + "; ".join(f"{case}: {why}" for why, case in reasons.items())
        )
    return good


def _is_bf16(line: Line) -> bool:
    return line.get("dtype") == "bfloat16"


def _is_planned(line: Line) -> bool:
    """Whether the planner has a formula for it: this recipe's kernels, where experts and sequences are all alike."""
    if line["kernel"] == "grouped_gemm":
        return line.get("recipe") is True and line["shape"]["busiest_over_mean"] == 1.0
    if line["kernel"] == "attention":
        return line["case"] == ATTENTION and line["shape"]["documents"] == [line["shape"]["seq_length"]]
    return line["kernel"] == "matmul"


def _matmul_dims(line: Line) -> tuple[float, float, float]:
    """Rows, inner dimension and columns; of an expert where they are grouped."""
    shape = line["shape"]
    return shape["rows"] / shape.get("experts", 1), shape["inner"], shape["columns"]


def _efficiency(line: Line, gpu: Accelerator) -> float:
    """Share of the peak of a matmul, plain or grouped, over what tiles leave of it."""
    rows, inner, columns = _matmul_dims(line)
    flops = 2.0 * line["shape"]["rows"] * inner * columns * (1.0 + BACKWARD_FLOPS * (line["pass"] == BOTH))
    return flops / line["seconds"] / gpu.bf16_flops / tile_share(rows, inner, columns)


def _planned_s(gpu: Accelerator, line: Line) -> float:
    shape, both = line["shape"], line["pass"] == BOTH
    if line["kernel"] == "attention":
        tokens, width = shape["batch"] * shape["seq_length"], shape["heads"] * shape["head_dim"]
        return attention_s(gpu, tokens, shape["seq_length"], width) * (1.0 + ATTENTION_BACKWARD_FLOPS * both)
    forward_s = matmul_s(gpu, *_matmul_dims(line), grouped_over=shape.get("experts", 1), grouped_gemm=gpu.grouped_gemm)
    return forward_s * (1.0 + BACKWARD_FLOPS * both)


# Constants


def _matmul(lines: list[Line], gpu: Accelerator) -> Derived:
    large = [line for line in _measured(lines, "matmul", bf16=True) if min(_matmul_dims(line)) >= LARGE]
    return _median([_efficiency(line, gpu) for line in large], f"a matmul of {LARGE:,} or more in each dimension")


def _attention(lines: list[Line], gpu: Accelerator) -> list[Derived]:
    """FLOP/s E, over the peak, on long sequences, and the length H of half of it: 1 / rate = 1 / E + H / E * 1 / length."""
    spent: dict[int, list[float]] = {}  # length -> seconds per FLOP
    for line in _measured(lines, "attention", bf16=True):
        if _is_planned(line) and line["pass"] == BOTH:
            shape = line["shape"]
            length, width = shape["seq_length"], shape["heads"] * shape["head_dim"]
            flops = attention_flops(shape["batch"] * length, length, width) * (1.0 + ATTENTION_BACKWARD_FLOPS)
            spent.setdefault(length, []).append(line["seconds"] / flops)
    if len(spent) < 2:
        raise _NotDerived(f"'{ATTENTION}' was measured {BOTH} at {len(spent)} lengths, 2 are needed")
    xs, ys = [1 / length for length in spent], [statistics.median(seconds) for seconds in spent.values()]
    slope, intercept = statistics.linear_regression(xs, ys)
    if intercept <= 0:
        raise _NotDerived("attention is so slow on the shorter sequences that no long ones explain it")
    if slope < 0:  # no slower on shorter sequences, so of no length that halves it
        slope, intercept = 0.0, statistics.mean(ys)
    number = sum(map(len, spent.values()))
    return [Derived(1 / intercept / gpu.bf16_flops, number), Derived(slope / intercept, number)]


def _streaming(lines: list[Line], gpu: Accelerator) -> Derived:
    """Of norms and updates, which the planner counts the bytes of; a plain copy is faster than both."""
    streaming = [line for line in _measured(lines, "streaming") if line["case"] != COPY]
    return _median([line["bytes"] / line["seconds"] / gpu.hbm_bytes_per_s for line in streaming], "a norm or an update")


def _grouped(lines: list[Line], gpu: Accelerator) -> Derived:
    matmul = _matmul(lines, gpu).value
    assert matmul is not None
    ours = [m for m in _measured(lines, "grouped_gemm", bf16=True) if _is_planned(m) and m["pass"] == BOTH]
    ratios = [_efficiency(line, gpu) / matmul for line in ours]
    return _median(ratios, f"the recipe's grouped GEMM, {BOTH}, with as many rows for each expert")


def _launch(lines: list[Line]) -> Derived:
    launches = [line["seconds"] for line in _measured(lines, "launch") if line["case"] == EAGER]
    return _median(launches, "an eager launch")


def _host_read(lines: list[Line]) -> Derived:
    reads = [line["seconds"] for line in _measured(lines, "host_read") if line["shape"]["small_kernels"] > 0]
    return _median(reads, "a read with small kernels behind it")


def _median(values: list[float], words: str) -> Derived:
    if not values:
        raise _NotDerived(f"no line of {words} was measured")
    return Derived(statistics.median(values), len(values))
