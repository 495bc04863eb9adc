"""A profile of some steps: a trace for Perfetto, in which phases and the model's parts are named.

Only rank 0 is profiled. Until the first of the steps nothing is hooked or annotated, and after the last one nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from recipe.base.files import replacing, write_text
from recipe.reading.breakdown import as_text, breakdown, read_trace
from recipe.run.job import ProfiledSteps
from recipe.telemetry.phases import NAMES

# Part of the step -> the name of a module and of its class, as `name:class`; the first that matches. Ours, transformers'
# and Megatron's.
PARTS = {
    "router": re.compile(r"Router$"),
    "shared experts": re.compile(r"shared_experts?:|SharedExpert"),
    "experts": re.compile(r"(RecipeLayer|MoELayer|MoeBlock|MoE)$"),
    "attention": re.compile(r"Attention$"),
    "norms": re.compile(r"Norm$"),
    "embedding": re.compile(r"(?<!Rotary)Embedding$"),
    "head and loss": re.compile(r"(lm_head|output_layer):|(CausalLM|GPTModel)$"),
    "dense MLP": re.compile(r"\.mlp:.*(Mlp|MLP)$"),
    "between blocks": re.compile(r"(Layer|Model|Decoder|Block)$"),
}


def part_of(name: str, module: nn.Module) -> str | None:
    """The part that a module is, if it is one of its own."""
    word = f"{name}:{type(module).__name__}"
    return next((part for part, pattern in PARTS.items() if pattern.search(word)), None)


@contextmanager
def named_parts(model: nn.Module) -> Iterator[None]:
    """While active, what runs in a part of the model is annotated with its name."""
    handles: list[Any] = []
    for name, module in model.named_modules():
        if (part := part_of(name, module)) is None:
            continue
        ranges: list[Any] = []

        def begin(*_: Any, part: str = part, ranges: list[Any] = ranges) -> None:
            ranges.append(record_function(f"part:{part}"))
            ranges[-1].__enter__()

        def end(*_: Any, ranges: list[Any] = ranges) -> None:
            ranges.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(begin))
        # Also where recomputation leaves a module early.
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PhaseRanges:
    """Annotates the phases that are entered, one after another, as `recipe.telemetry.phases` names them."""

    def __init__(self) -> None:
        self._range: Any = None

    def enter(self, phase: str) -> None:
        self.close()
        self._range = record_function(f"phase:{NAMES[phase]}")
        self._range.__enter__()

    def close(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


@contextmanager
def traced(model: nn.Module, path: Path) -> Iterator[PhaseRanges]:
    """Profile what runs inside, of which the caller names the phases, and write the trace, whole or not at all."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    ranges = PhaseRanges()
    with named_parts(model), profile(activities=activities) as profiler:
        yield ranges
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the last kernels belong to the last step
        ranges.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, path.with_name("." + path.name)) as partial:  # torch looks at the suffix
        profiler.export_chrome_trace(str(partial))


class StepProfiler:
    """Profiles the steps of a run that it was asked for, as the loop goes through them; the trace goes into `folder`.

    A run that is started again after them, by the same command, comes through none.
    """

    def __init__(self, model: nn.Module, steps: ProfiledSteps, folder: Path):
        self._model, self._steps = model, steps
        self._path = folder / f"steps_{steps.first:08d}_{steps.last:08d}.json.gz"
        self._tracing: Any = None
        self._ranges: PhaseRanges | None = None

    def begin_step(self, step: int) -> None:
        if step == self._steps.first:
            self._tracing = traced(self._model, self._path)
            self._ranges = self._tracing.__enter__()
            self.enter("between steps")

    def enter(self, phase: str) -> None:
        if self._ranges is not None:
            self._ranges.enter(phase)

    def end_step(self, step: int, *, stopped: bool) -> str | None:
        """After the last of the steps, what the profile says; or that there is none, if training stops before it."""
        if stopped and step < self._steps.last:
            return f"no profile: training stops after step {step:,}, before step {self._steps.last:,}"
        if self._ranges is None or step != self._steps.last:
            return None
        try:
            return self._written()
        except (OSError, RuntimeError, ValueError) as error:  # a full disk, or what torch, gzip and JSON make of one
            return f"no profile: {self._path} could not be written ({error}); training goes on, make room and ask again"

    def _written(self) -> str:
        self._ranges = None
        tracing, self._tracing = self._tracing, None
        tracing.__exit__(None, None, None)
        steps = self._steps.last - self._steps.first + 1
        table = as_text(breakdown(read_trace(self._path), steps))
        write_text(self._path.with_suffix("").with_suffix(".txt"), table + "\n")
        return f"{table}\n\nprofile in {self._path}; open it in https://ui.perfetto.dev"

    def close(self) -> None:
        """Without a trace, if the steps are not over."""
        self._ranges = None
        tracing, self._tracing = self._tracing, None
        if tracing is not None:
            given_up = RuntimeError("training ends before the last profiled step")
            tracing.__exit__(type(given_up), given_up, None)
