"""What is decided about checkpoints without an engine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.schedule import Schedule
from recipe.base.settings import Checkpoint
from recipe.base.strict import load_json
from recipe.checkpoints import store as store_module
from recipe.checkpoints import stored
from recipe.checkpoints.snapshot import not_finite
from recipe.checkpoints.store import CheckpointStore, TrainState, _Save
from recipe.engine.deepspeed_private import CheckpointCommitInfo, TorchCheckpointEngine
from recipe.run import checkpoint_files as on_disk
from recipe.run.records import saved_checkpoints
from recipe.training import stopping
from recipe.training.loop import LAST_BEFORE_DECAY, Training
from recipe.training.stopping import StopRequest, process_age_s
from tests.conftest import ROOT
from tests.recipe.run.test_folder import config
from tests.recorded import recorded_disk


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


SHAPE = load_model_shape(ROOT / "recipe/configs/models/tiny")
DS_RAW = load_json(ROOT / "ds_configs/cpu_2.json")
RUN = config(Path("run"), data={"tokens": "tokens", "seq_length": 10})


def checkpoint(folder: Path, step: int, keep: str | None) -> Path:
    path = folder / on_disk.checkpoint_name(step)
    path.mkdir()
    manifest = {
        "schema": on_disk.SCHEMA, "version": on_disk.VERSION, "train_state": {"tokens": step * 100},
        "ds_config": {**DS_RAW, "train_batch_size": 10, "train_micro_batch_size_per_gpu": 5},
        "run_config": RUN.model_dump(mode="json"), "identity": {"model": SHAPE.model_dump(mode="json")},
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


def alone(monkeypatch) -> None:
    """One rank, without a process group."""
    for module in (store_module, stored):
        monkeypatch.setattr(module, "from_first_rank", lambda make: make())
    for name in ("any_rank", "all_ranks"):
        monkeypatch.setattr(store_module, name, lambda holds: holds)
    for name, value in (("get_rank", 0), ("get_world_size", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    share = SimpleNamespace(names=[], dtype=torch.float32, counted=dict, compute=lambda: None)
    monkeypatch.setattr(store_module, "EngineShare", lambda engine, replicas: share)
    monkeypatch.setattr(store_module, "topology", lambda engine: {"world_size": 1})


class Engine:
    """Hands two files of one tensor to the checkpoint engine, as DeepSpeed does."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weights, self.checkpoint_engine = torch.ones(3), TorchCheckpointEngine()

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.create(CheckpointCommitInfo(tag=tag, save_dir=folder, save_latest=save_latest))
        for name in ("model_states.pt", "zero/optim_states.pt"):
            self.checkpoint_engine.save({"w": self.weights}, f"{folder}/{tag}/{name}")
        self.checkpoint_engine.commit(None)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_latest_is_moved_last(tmp_path, monkeypatch):
    alone(monkeypatch)
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=1))
    calls = recorded_disk(monkeypatch)
    store.save_now(Engine(), TrainState(step=7), keep="for the paper")
    partial, final = tmp_path / "step_00000007.partial", tmp_path / "step_00000007"
    renamed = calls.index(("rename", partial, final))
    before = {path for kind, path, *_ in calls[:renamed] if kind == "fsync"}
    names = [path.relative_to(final) for path in final.rglob("*")]
    assert len(names) == 2 + 1 + 3  # the files and a folder; their list, the manifest and why it is kept
    written = {partial / name for name in names}
    written |= {path.with_name(path.name + ".partial") for path in written}  # some are renamed themselves
    assert before - {partial} <= written
    assert {path.name.removesuffix(".partial") for path in before} >= {name.name for name in names}
    # Folders after all that is in them.
    flushed = [path for kind, path, *_ in calls[:renamed] if kind == "fsync"]
    assert {flushed[-1], flushed[-2]} == {partial, partial / "zero"}
    assert calls[renamed + 1] == ("fsync", tmp_path)
    latest = calls.index(("rename", tmp_path / "latest.partial", tmp_path / "latest"))
    assert latest > renamed
    assert (tmp_path / "latest").read_text() == "step_00000007"


def test_checkpoints_to_be_kept_stay_when_others_go(tmp_path, monkeypatch):
    alone(monkeypatch)
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=5, keep_last=1, keep_every_steps=10))
    engine, steps = Engine(), []
    for step in range(5, 30, 5):
        store.save(engine, TrainState(step=step))
        store.prove(sound=True)
        assert store.finish()
        steps.append([on_disk.step_of(path) for path in on_disk.complete(tmp_path)])
    assert steps == [[5], [10], [10, 15], [10, 20], [10, 20, 25]]


def test_a_save_in_the_background_returns_before_it_is_written(tmp_path, monkeypatch):
    alone(monkeypatch)
    go, write = threading.Event(), store_module.write_files
    monkeypatch.setattr(store_module, "write_files", lambda *words: go.wait(30) and write(*words))
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=1, asynchronous=True))
    engine = Engine()
    store.save(engine, TrainState(step=1))
    assert (store.votes()["written"], on_disk.complete(tmp_path)) == (0.0, [])
    store.before_update()
    engine.weights.zero_()  # small, such as an expert bias, and saved as it was
    go.set()
    assert store.finish()
    (path,) = on_disk.complete(tmp_path)
    assert torch.load(path / "model_states.pt")["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_save_in_the_foreground_is_written_when_it_returns(tmp_path, monkeypatch):
    alone(monkeypatch)
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=1, asynchronous=False))
    store.save(Engine(), TrainState(step=1))
    assert store.votes() == {"written": 1.0, "unwritten": 0.0, "unsound": 0.0}
    assert store.finish()
