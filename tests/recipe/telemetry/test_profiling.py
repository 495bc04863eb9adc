"""A profile that cannot be made ends nothing and leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from recipe.reading.breakdown import as_text, breakdown, read_trace
from recipe.run.job import ProfiledSteps
from recipe.telemetry import profiling
from recipe.telemetry.profiling import StepProfiler


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Embedding(4, 2), nn.LayerNorm(2))


def profiled(model: nn.Module, folder: Path, steps: int) -> tuple[StepProfiler, str | None]:
    profiler = StepProfiler(model, ProfiledSteps(1, 2), folder)
    message = None
    for step in range(1, steps + 1):
        profiler.begin_step(step)
        profiler.enter("forward")
        model(torch.zeros(1, dtype=torch.long))
        message = profiler.end_step(step, stopped=False)
    return profiler, message


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_profile_is_written_after_the_last_of_its_steps(model, tmp_path):
    profiler, message = profiled(model, tmp_path, 2)
    assert message is not None
    trace = tmp_path / "steps_00000001_00000002.json.gz"
    table = as_text(breakdown(read_trace(trace), 2))
    assert message.startswith(f"{table}\n\nprofile in {trace}")
    assert (tmp_path / "steps_00000001_00000002.txt").read_text() == f"{table}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "steps_00000001_00000002.json.gz",
        "steps_00000001_00000002.txt",
    ]
    profiler.close()
    assert hooks(model) == 0


@pytest.mark.parametrize("fails", ["os.replace", "write_text", "read_trace"])
def test_a_disk_without_room_for_it_is_told(model, tmp_path, monkeypatch, fails):
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut(*_: object) -> str:
        raise ValueError("the trace ends within a word")

    if fails == "os.replace":
        monkeypatch.setattr(os, "replace", full)
    elif fails == "write_text":
        monkeypatch.setattr(profiling, "write_text", full)
    else:
        monkeypatch.setattr(profiling, "read_trace", cut)
    profiler, message = profiled(model, tmp_path, 2)
    assert message is not None
    assert message.startswith("no profile: ")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hooks(model) == 0
    profiler.close()


def test_training_that_ends_within_the_profiled_steps_leaves_no_hook_and_no_file(model, tmp_path):
    profiler, message = profiled(model, tmp_path, 1)
    assert message is None
    assert hooks(model) > 0
    profiler.close()
    assert hooks(model) == 0
    assert list(tmp_path.iterdir()) == []
    profiler.close()
