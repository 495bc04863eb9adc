"""A run in phases: one command, the same losses whatever kills it, each sequence once, at any number of ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from recipe.base.files import read_json_lines
from recipe.base.run_config.learning_rate import learning_rate
from recipe.base.run_config.schedule import Schedule
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
SCHEDULE = Schedule(**SECTIONS["schedule"])
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
def test_four_phases_killed_at_random_equal_undisturbed_ones_to_the_last_bit(new_run, prepared, small_model, write_ds):
    sections, ds_path = sections_of(prepared, small_model), write_ds(2, **TWO_RANKS)
    whole, killed, alone = (new_run(name, **sections) for name in ("whole", "killed", "alone"))
    done = launch(2, "tests/recipe/training/phases_worker.py", *whole.arguments(ds_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("still there: []") == 2 * (len(PHASES) - 1)  # on each rank, after each phase but the last
    expected = losses(whole.run_dir)
    assert sorted(expected) == list(range(1, sum(STEPS) + 1))
    check_what_is_left(whole)

    faults = [
        {"kind": "kill_in_save", "attempt": 1, "rank": 0, "step": 4, "point": "written"},  # at the first boundary
        {"kind": "kill_in_forward", "attempt": 2, "rank": 1, "step": 5},  # right after it
        {"kind": "kill_in_save", "attempt": 3, "rank": 0, "step": 7, "point": "renamed"},  # at the second
        {"kind": "kill_in_backward", "attempt": 4, "rank": 1, "step": 12},
    ]
    environment = {"RECIPE_FAULTS": json.dumps(faults)}
    for fault in faults:
        words = killed.arguments(ds_path, *(("--resume", "auto") if fault["attempt"] > 1 else ()))
        assert launch(2, TRAIN, *words, env=environment).returncode == -signal.SIGKILL
    assert finish(2, killed, ds_path, "--resume", "auto") == expected
    assert final_manifest(killed)["train_state"] == final_manifest(whole)["train_state"]
    assert read_metrics(killed.run_dir)[-1]["source_tokens"] == read_metrics(whole.run_dir)[-1]["source_tokens"]

    of_one = finish(1, alone, write_ds(1, micro_batch=4, accumulation=1, autoep_size=1))
    assert list(of_one.values()) == pytest.approx(list(expected.values()), rel=1e-5)


def final_manifest(run: RunFiles) -> dict[str, Any]:
    return read_manifest(complete(run.run_dir / "checkpoints")[-1])


def check_what_is_left(run: RunFiles) -> None:
    """Each phase has read what was planned, is told of, and has left its last checkpoint and its ds_config."""
    state = final_manifest(run)["train_state"]
    assert (state["phase"], state["phase_sequences"], state["sequences"]) == (3, [16, 24, 12], 12)
    assert state["tokens"] == SECTIONS["schedule"]["total_tokens"]
    assert len(state["guard"]["losses"]) == STEPS[-1]  # other data and lengths have another level
    read = read_metrics(run.run_dir)[-1]["source_tokens"]
    assert sum(read.values()) == pytest.approx(state["tokens"], abs=1e-6)
    kept = {path.name: kept_for(path) for path in complete(run.run_dir / "checkpoints") if kept_for(path)}
    assert kept == {
        "step_00000004": "the last of phase small",
        "step_00000007": "the last of phase mixed",
        "step_00000010": "the last of phase long",
    }
    events = [
        e for e in read_json_lines(run.run_dir / "events.jsonl") if e["event"] in ("started", "phase", "finished")
    ]
    assert [(e["event"], e["step"]) for e in events] == [
        ("started", 0), ("phase", 0), ("phase", 4), ("phase", 7), ("phase", 10), ("finished", 13)
    ]  # fmt: skip
    batches = [
        json.loads((run.run_dir / "ds_configs" / f"{number}_{phase['name']}.json").read_text())["train_batch_size"]
        for number, phase in enumerate(PHASES)
    ]
    assert batches == [4, 8, 4, 4]
    rates = [m["lr"] for m in read_metrics(run.run_dir)]
    assert rates[9] == pytest.approx(
        2**0.5 * learning_rate(SCHEDULE, 22 * BATCH)
    )  # of the schedule, times the batch's factor
    assert rates[-1] == 0.0
