"""A run in phases: one command, the same losses whatever kills it, each sequence once, at any number of ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from recipe.base.files import read_json_lines
from recipe.run.checkpoint_files import complete, kept_for, read_manifest
from recipe.run.records import read_metrics
from tests.conftest import RunFiles, launch

TRAIN = "recipe/train.py"
LENGTH, BATCH = 32, 4 * 32  # of the first phase
PHASES: list[dict[str, Any]] = [
    {"name": "small", "tokens": 4 * BATCH},
    {"name": "mixed", "tokens": 3 * 2 * BATCH, "batch_tokens": 2 * BATCH, "data": {"mixture": {"factors": {"zh": 3.0}}}},
    {
        "name": "long",
        "tokens": 3 * 4 * BATCH,
        "batch_tokens": 4 * BATCH,
        "data": {"seq_length": 4 * LENGTH, "document_attention": True},
        "rope_parameters": {"rope_theta": 50000.0},
    },
    {"name": "decay", "batch_tokens": 4 * BATCH, "learning_rate": {"shape": "one_minus_sqrt", "to": 0.0},
     "data": {"seq_length": 4 * LENGTH}, "rope_parameters": {"rope_theta": 50000.0}},
]  # fmt: skip
STEPS = [4, 3, 3, 3]  # of each phase
SECTIONS: dict[str, Any] = {
    "data": {"seq_length": LENGTH},
    "schedule": {
        "total_tokens": (4 + 6 + 12 + 12) * BATCH, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 2 * BATCH,
        "batch_scaling": "sqrt", "reference_batch_tokens": 2 * BATCH,
    },
    "checkpoint": {"every_steps": 2},
    "phases": PHASES,
}  # fmt: skip
TWO_RANKS = {"micro_batch": 2, "accumulation": 1, "autoep_size": 2}
pytestmark = pytest.mark.distributed


def sections_of(prepared, small_model) -> dict[str, Any]:
    data = {**SECTIONS["data"], "tokens": str(prepared.tokens)}
    return {**SECTIONS, "data": data, "model": str(small_model)}


def finish(ranks: int, run: RunFiles, ds_path: Path, *more: object) -> dict[int, float]:
    done = launch(ranks, TRAIN, *run.arguments(ds_path, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(run.run_dir)


def losses(run_dir: Path) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run_dir)}


@pytest.mark.slow
def test_four_phases_killed_at_random_equal_undisturbed_ones_to_the_last_bit(
    new_run, prepared, small_model, write_ds
):
    sections, ds_path = sections_of(prepared, small_model), write_ds(2, **TWO_RANKS)
    whole, killed = (new_run(name, **sections) for name in ("whole", "killed"))
    expected = finish(2, whole, ds_path)
    assert sorted(expected) == list(range(1, sum(STEPS) + 1))
    faults = [
        {"kind": "kill_in_save", "attempt": 1, "rank": 0, "step": 4, "point": "written"},  # the save at the first boundary
        {"kind": "kill_in_forward", "attempt": 2, "rank": 1, "step": 5},  # right after it
        {"kind": "kill_in_save", "attempt": 3, "rank": 0, "step": 7, "point": "renamed"},
        {"kind": "kill_in_backward", "attempt": 4, "rank": 1, "step": 12},
    ]
    environment = {"RECIPE_FAULTS": json.dumps(faults)}
    for fault in faults:
        words = killed.arguments(ds_path, *(("--resume", "auto") if fault["attempt"] > 1 else ()))
        assert launch(2, TRAIN, *words, env=environment).returncode == -signal.SIGKILL
    assert finish(2, killed, ds_path, "--resume", "auto") == expected
