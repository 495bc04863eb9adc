"""The calibration file: what one GPU was measured to reach, in place of what the planner assumes of its kind.

`benchmarks/calibration.py` writes it from a measurement; `launch/plan.py --calibration FILE` plans with it. A constant that
the file lacks keeps the planner's value, and the plan names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from recipe.base.errors import UserError
from recipe.base.hardware import ACCELERATORS, Cluster, accelerator_named, accelerator_of
from recipe.base.strict import Section, load_json, strict_model

FORMAT = 2  # raised when a formula changes that a constant is derived by
WORDS = {
    "matmul_efficiency": "large matmul, share of the bf16 peak",
    "attention_efficiency": "long attention, share of the bf16 peak",
    "attention_half": "sequence length of half of that",
    "hbm_efficiency": "streaming, share of the memory bandwidth",
    "grouped_gemm": "grouped GEMM, share of a plain matmul",
    "launch_s": "launch of a kernel, s",
    "host_read_s": "value that the host waits for, s",
    "memory_gib": "memory, GiB",
    "run_efficiency": "kernels' planned time over a step's",
}


class Constants(Section):
    """Fields of `Accelerator` as they were measured; without those that were not."""

    matmul_efficiency: float | None = Field(None, gt=0, le=1)
    """Share of the datasheet's bf16 peak that a large matmul reaches."""
    attention_efficiency: float | None = Field(None, gt=0, le=1)
    """Share of that peak of causal flash attention on long sequences, forward and backward."""
    attention_half: float | None = Field(None, ge=0, le=100_000)
    """Sequence length at which attention reaches half of it."""
    hbm_efficiency: float | None = Field(None, gt=0, le=1)
    """Share of the datasheet's memory bandwidth that streaming kernels reach."""
    grouped_gemm: float | None = Field(None, gt=0, le=1.5)
    """Efficiency of the grouped GEMM over `matmul_efficiency`, tiles counted."""
    launch_s: float | None = Field(None, gt=0, le=1e-3)
    """Seconds between the starts of two kernels."""
    host_read_s: float | None = Field(None, gt=0, le=0.1)
    """Seconds that the host waits for a value of the device."""
    memory_gib: float | None = Field(None, gt=0, le=10_000)
    """GiB that CUDA reports."""
    run_efficiency: float | None = Field(None, gt=0, le=1.5)
    """The kernels' planned time over the measured step."""


class Calibration(Section):
    """What was measured, on which GPU, when, and with what."""

    format: Literal[2]
    """Of this file."""
    gpu: str
    """As `--gpu` has it."""
    device: str
    """As CUDA names it."""
    date: str
    """Of the measurement, such as 2026-11-28."""
    commit: str | None
    """Of the code that measured; null where it was no checkout."""
    dirty: bool | None
    """Whether that code had changes that no commit has."""
    driver: str | None
    """NVIDIA's, null where it is not known."""
    packages: dict[str, str]
    """Name and version of those that the measurement rests on."""
    constants: Constants
    """What was measured."""
    steps: dict[str, Annotated[float, Field(gt=0, le=100)]]
    """Of each measured training step but that of `run_efficiency`, its seconds over those planned with these constants."""

    def problems(self) -> list[str]:
        """What no single field shows."""
        problems, known = [], [a.name for a in ACCELERATORS]
        of_device = accelerator_of(self.device)
        if self.gpu not in known:
            problems.append(f"'gpu' is '{self.gpu}': must be one of {', '.join(known)}")
        elif of_device is None or of_device.name != self.gpu:
            problems.append(
                f"'device' is '{self.device}', which is no {self.gpu}; measure it on the GPU that 'gpu' says"
            )
        try:
            date.fromisoformat(self.date)
        except ValueError:
            problems.append(f"'date' is '{self.date}': must be a date such as 2026-11-28")
        if not self.measured:
            problems.append("'constants' is empty: nothing was measured; plan without the file")
        return problems

    @property
    def measured(self) -> dict[str, float]:
        """Name of each measured constant, and its value."""
        return {name: value for name, value in self.constants if value is not None}

    def applied_to(self, cluster: Cluster) -> Cluster:
        """The cluster, whose GPUs reach what was measured."""
        changes: dict[str, Any] = self.measured
        return replace(cluster, accelerator=replace(cluster.accelerator, **changes))

    def as_dict(self) -> dict[str, Any]:
        """For --json: the file, with each constant beside what the planner assumes; null where it was not measured."""
        assumed = accelerator_named(self.gpu)
        constants = {name: {"measured": v, "assumed": getattr(assumed, name)} for name, v in self.constants}
        return self.model_dump() | {"constants": constants}


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        UserError: it cannot be read, is none, or has another format; every problem is named.
    """
    content = load_json(path)
    if not isinstance(content, dict) or not {"format", "constants"} <= content.keys():
        raise UserError(f"{path} is not a calibration file; give one that `make gpu` wrote, GPU_DATE.calibration.json")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {content.get('format')}, and this version reads {FORMAT}; write it anew from its result: "
            f"python benchmarks/calibration.py RESULT.json --output {path}"
        )
    return strict_model(Calibration, content, path)


def calibrated_gpu(calibration: Calibration | None, path: Path | None, gpu: str | None, default: str) -> str:
    """The name of the GPU to plan for: what was asked for, else the calibration's, else `default`.

    Raises:
        UserError: the calibration is of another GPU than was asked for.
    """
    if calibration is None:
        return gpu or default
    if gpu not in (None, calibration.gpu):
        raise UserError(
            f"--calibration {path} was measured on a GPU of type {calibration.gpu}, and --gpu is {gpu}; "
            f"leave --gpu out, or give a file that was measured on {gpu}"
        )
    return calibration.gpu


def problem_of(name: str, value: float) -> str | None:
    """Why a constant cannot be what was measured; None if it can."""
    try:
        Constants.model_validate({name: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        return f"comes out as {value:.4g}, and {message[0].lower()}{message[1:]}"
    return None


def describe_calibration(calibration: Calibration, cluster: Cluster) -> Iterator[str]:
    """Lines of a plan: what was measured, on what and when, beside what is assumed without it."""
    assumed = accelerator_named(calibration.gpu)
    versions = ", ".join(f"{name} {version}" for name, version in calibration.packages.items())
    commit = f"commit {calibration.commit[:12]}" if calibration.commit else "commit not known"
    changed = " with changes" if calibration.dirty else ""
    yield (
        f"calibration measured on 1 x {calibration.device}, {calibration.date}, {commit}{changed}"
        f"{f'; {versions}' if versions else ''}"
    )
    yield f"{'':<44}{'measured':>10}{'assumed':>10}"
    for name, value in calibration.constants:
        yield f"  {WORDS[name]:<42}{'-' if value is None else f'{value:.4g}':>10}{getattr(assumed, name):>10.4g}"
    if calibration.steps:
        steps = "; ".join(f"{ratio:.2f} ({name})" for name, ratio in calibration.steps.items())
        yield f"  check: measured over planned with these, of other steps: {steps}"
    if cluster.gpus > 1:
        yield (
            f"  one GPU was measured, not {cluster.gpus:,}: NVLink, the network, imbalance and stragglers are assumed, as is "
            "the width of the range"
        )
