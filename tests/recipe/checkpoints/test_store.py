"""What is decided about checkpoints without an engine."""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from recipe.base.settings import Checkpoint, Schedule
from recipe.checkpoints import stored
from recipe.checkpoints.snapshot import not_finite
from recipe.checkpoints.store import CheckpointStore, _Save
from recipe.run import checkpoint_files as on_disk
from recipe.run.records import saved_checkpoints
from recipe.training import stopping
from recipe.training.loop import LAST_BEFORE_DECAY, Training
from recipe.training.stopping import StopRequest, process_age_s


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(value):
    moments = torch.zeros(3, 2, dtype=torch.bfloat16)
    state = {"module": OrderedDict(weight=torch.ones(4)), "optimizer": {"state": [{"exp_avg": moments.T}], "step": 3}}
    files = [(Path("a/model.pt"), {"ids": torch.arange(3)}), (Path("a/optim.pt"), state)]
    assert not_finite(files) is None
    moments[2, 1] = value
    assert not_finite(files) == "optimizer.state[0].exp_avg in optim.pt"


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=1))
    store._snapshot = SimpleNamespace(wait=lambda: None)  # type: ignore[assignment]
    partial = tmp_path / "step_00000001.partial"
    save = _Save(1, partial, [(partial / "x.pt", {"w": torch.tensor(float("nan"))})], {}, None, 4, 0.0)
    store._write(save, rank=0)
    assert not partial.exists()
    store._save, save.thread = save, SimpleNamespace(is_alive=lambda: False)  # type: ignore[assignment]
    assert store.votes() == {"written": 1.0, "unwritten": 1.0, "unsound": 1.0}


def checkpoint(folder: Path, step: int, keep: str | None) -> Path:
    path = folder / on_disk.checkpoint_name(step)
    path.mkdir()
    manifest = {
        "schema": on_disk.SCHEMA, "version": on_disk.VERSION, "train_state": {"tokens": step * 100},
        "ds_config": {"train_batch_size": 10}, "run_config": {"data": {"seq_length": 10}},
    }  # fmt: skip
    (path / on_disk.MANIFEST).write_text(json.dumps(manifest))
    if keep is not None:
        (path / on_disk.KEEP).write_text(keep)
    return path


@pytest.mark.parametrize(("decay_tokens", "kept"), [(350, {6}), (250, {7}), (950, set())])
def test_the_last_before_a_decay_that_has_moved_is_not_kept_for_it(decay_tokens, kept, tmp_path, monkeypatch):
    for step, keep in ((6, LAST_BEFORE_DECAY + "\n"), (7, LAST_BEFORE_DECAY + "\n"), (8, ""), (9, "for the paper")):
        checkpoint(tmp_path, step, keep)
    schedule = Schedule(total_tokens=1000, kind="wsd", peak_lr=1, min_lr=0, warmup_tokens=0, decay_tokens=decay_tokens)
    training: Any = SimpleNamespace(job=SimpleNamespace(run=SimpleNamespace(schedule=schedule)))
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=1))
    monkeypatch.setattr(stored, "from_first_rank", lambda make: make())
    store.unmark(LAST_BEFORE_DECAY, lambda manifest: Training._is_last_before_decay(training, manifest))
    marked = {on_disk.step_of(p) for p in on_disk.complete(tmp_path) if on_disk.kept_for(p)}
    assert marked == kept | {8, 9}
    assert {event["step"] for event in store.take_events()} == {6, 7} - kept


def test_a_time_limit_is_of_the_process(monkeypatch, tmp_path):
    assert process_age_s() == pytest.approx(
        time.time() - psutil.Process(os.getpid()).create_time(), abs=2
    )  # psutil knows the boot to a second
    monkeypatch.setattr(stopping.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(stopping.signal, "signal", lambda *_: None)
    monkeypatch.setattr(stopping, "process_age_s", lambda: 1000.0)
    assert StopRequest(tmp_path / "stop", 1100.0 + stopping.MARGIN_S).reason() is None
    assert StopRequest(tmp_path / "stop", 1000.0).reason() == "time limit"
    request = StopRequest(tmp_path / "stop", 1100.0 + stopping.MARGIN_S)
    request.needed_s = 60.0  # a step, and a save until it is on disk
    assert request.reason() == "time limit"


def test_what_a_run_has_saved_since_it_began_is_known(tmp_path):
    events = [
        {"event": "started", "step": 0, "checkpoint": None},
        {"event": "checkpoint", "step": 4, "took_s": 2.0},
        {"event": "started", "step": 4, "checkpoint": "step_00000004"},
    ]

    def write(*more: dict[str, Any]) -> None:
        (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*events, *more]))

    assert saved_checkpoints(tmp_path) == []
    write()
    assert saved_checkpoints(tmp_path) == [events[1]]
    write({"event": "started", "step": 0, "checkpoint": None})  # after a rewind to before the first
    assert saved_checkpoints(tmp_path) == []
    write({"event": "started", "step": 0, "checkpoint": None}, {"event": "imported", "step": 0})
    assert [event["event"] for event in saved_checkpoints(tmp_path)] == ["imported"]
