"""Silent corruption costs its host, and the checkpoints since the last good check; the data are seen again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cluster.allocation import Allocation, Hosts, ThisHost
from launch.cluster.incidents import incident_of
from launch.supervise import Supervisor
from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.base.ranks import RESTART
from recipe.base.settings import Checkpoint
from recipe.checkpoints import stored as checkpoint
from recipe.checkpoints.store import CheckpointStore
from recipe.engine.step_guard import Rewind
from recipe.run import checkpoint_files as on_disk
from recipe.run.folder import Orders, RunFolder, read_orders
from recipe.safety import corruption as corruption_check
from recipe.safety.corruption import Corruption, check_for_corruption
from recipe.training import start as attempt
from recipe.training.loop import Outcome


def committed(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / on_disk.checkpoint_name(step) for step in steps]
    for path in paths:
        state = {"step": on_disk.step_of(path), "sequences": 8 * on_disk.step_of(path)}
        manifest = {"schema": on_disk.SCHEMA, "version": on_disk.VERSION, "files": {}, "train_state": state}
        write_json(path / "manifest.json", manifest)
    return paths


@pytest.fixture
def alone(monkeypatch):
    """Of many ranks this is the first, and it need not ask the others."""
    monkeypatch.setattr(checkpoint, "from_first_rank", lambda make: make())
    monkeypatch.setattr(CheckpointStore, "damage", lambda self, path: [])
    monkeypatch.setattr(attempt, "from_first_rank", lambda make: make())
    monkeypatch.setattr(attempt.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(attempt.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(attempt.dist, "barrier", lambda: None)


@pytest.mark.parametrize(
    ("bits", "hosts", "known"), [("aba", {1: "h"}, True), ("ab", {0: "h", 1: "h"}, False), ("aaa", None, None)]
)
def test_the_rank_with_other_bits_is_named_where_most_agree(bits, hosts, known, monkeypatch):
    monkeypatch.setattr(corruption_check, "digest_of_results", lambda *_: "a")
    monkeypatch.setattr(corruption_check, "gathered", lambda _: [("h", "", result) for result in bits])
    corruption = check_for_corruption(None, None, None)
    if hosts is None:
        assert corruption is None
    else:
        assert corruption == Corruption(hosts, known)
        assert "silent data corruption: rank" in str(corruption)


def test_checkpoints_since_the_last_good_check_are_set_aside_with_their_universal_form(alone, tmp_path):
    committed(tmp_path, 2, 4, 6, 8)
    write_json(on_disk.universal_of(tmp_path / "step_00000006") / "manifest.json", {})
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=2))
    assert store.choose(fall_back=True, orders=Orders(good_until=4)) == tmp_path / "step_00000004"
    names = ["step_00000002", "step_00000004", "step_00000006.suspect", "step_00000006.suspect.universal"]
    names.append("step_00000008.suspect")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(e["event"], e["step"]) for e in store.take_events()] == [
        ("checkpoint_suspect", 6),
        ("checkpoint_suspect", 8),
    ]
    with pytest.raises(UserError, match="has no checkpoint 'step_00000008'"):
        store.choose("step_00000008", fall_back=False, orders=Orders(good_until=4))


def test_a_branch_that_was_left_is_not_gone_on_from_after_a_kill(alone, tmp_path):
    """The start that had named step 4 ended before it had set the younger ones aside."""
    committed(tmp_path / "checkpoints", 2, 4, 6, 8)
    write_json(tmp_path / "rewind.json", {"number": 1, "before_step": 6, "sequences": 64, "message": "a spike"})
    RunFolder(tmp_path, 1).order_left(4)
    store = CheckpointStore(tmp_path / "checkpoints", Checkpoint(every_steps=2))
    assert store.choose(fall_back=True, orders=read_orders(tmp_path)) == store.folder / "step_00000004"
    assert sorted(p.name for p in store.folder.glob("*.left")) == ["step_00000006.left", "step_00000008.left"]
    assert read_orders(tmp_path) == Orders(left_above=4)  # the rewind was of that branch
    RunFolder(tmp_path, 2).checkpoints_are_set_aside()
    assert read_orders(tmp_path) == Orders()


@pytest.mark.parametrize(("committed_steps", "begins_anew"), [((), True), ((6, 8), True), ((2, 6, 8), False)])
def test_a_rewind_begins_anew_only_before_the_first_checkpoint(committed_steps, begins_anew, alone, tmp_path):
    store = CheckpointStore(tmp_path, Checkpoint(every_steps=2))
    orders = Orders(rewind={"number": 1, "before_step": 5, "sequences": 40})
    if begins_anew:
        assert store.choose(fall_back=True, orders=orders, committed=committed_steps) is None
    else:
        with pytest.raises(UserError, match="the run has saved some, the last after step 2; restore"):
            store.choose(fall_back=True, orders=orders, committed=committed_steps)


def test_a_run_does_not_begin_anew_because_no_good_checkpoint_is_left(alone, tmp_path):
    committed(tmp_path / "checkpoints", 6, 8)
    store = CheckpointStore(tmp_path / "checkpoints", Checkpoint(every_steps=2))
    with pytest.raises(UserError, match=r"no checkpoint from before the last good probe \(step 4\)"):
        store.choose(fall_back=True, orders=Orders(good_until=4))
    with pytest.raises(UserError, match="no checkpoint from before the first probe, which was not good; copy one back"):
        store.choose(fall_back=True, orders=Orders(good_until=0))
    assert len(on_disk.complete(store.folder)) == 2


def test_retention_keeps_the_checkpoint_that_would_be_gone_back_to(tmp_path):
    two, four, six, _, _ = committed(tmp_path, 2, 4, 6, 8, 10)
    assert on_disk.expendable(tmp_path, 2, None, good_until=5) == [two, six]
    assert on_disk.expendable(tmp_path, 2, None) == [two, four, six]


def ended(folder: RunFolder, outcome: Outcome, monkeypatch) -> int:
    """The exit code of an attempt whose training ends so in step 9, with the last good corruption check after step 6."""

    class Training:
        def __init__(self, engine, job, store, state, *_: object):
            self.state = state

        def run(self) -> Outcome:
            self.state.step, self.state.sequences, self.state.good_probe = 9, 72, 6
            return outcome

    class Writer:
        def __init__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(attempt, "Training", Training)
    monkeypatch.setattr(attempt, "MetricsWriter", Writer)
    monkeypatch.setattr(attempt, "StopRequest", lambda *_: None)
    monkeypatch.setattr(attempt, "provenance", lambda _: {})
    monkeypatch.setattr(attempt, "build_engine", lambda *_, **__: None)
    monkeypatch.setattr(attempt.RecipeMoeConfig, "from_shape", lambda _: None)
    monkeypatch.setattr(CheckpointStore, "load", lambda *_: None)
    monkeypatch.setattr(CheckpointStore, "finish", lambda _: True)
    run = SimpleNamespace(
        run_dir=folder.path, seed=1, optimizer=None, compute=None, checkpoint=Checkpoint(every_steps=2),
        data=SimpleNamespace(seq_length=8), logging=None,
    )  # fmt: skip
    job = SimpleNamespace(run=run, engine_ds_raw={}, shape=None, phases=[None], last_step=lambda *_: 9)
    job.at = lambda *_: job
    watchdog = SimpleNamespace(progress=SimpleNamespace(enter=lambda _: None), phase_begins=lambda _: None)
    return attempt.train_on(job, folder, watchdog, resume="auto", time_limit_s=None)  # type: ignore[arg-type]


def test_the_next_start_goes_back_and_sees_the_same_data(alone, tmp_path, monkeypatch):
    committed(tmp_path / "checkpoints", 4, 6, 8)
    first = RunFolder(tmp_path, 1)
    assert ended(first, Outcome("corruption", corruption=Corruption({1: "host1"}, known=True)), monkeypatch) == RESTART
    assert read_orders(tmp_path).good_until == 6
    found = incident_of(tmp_path, 1, RESTART)
    assert (found.kind, found.rank, found.host, found.ranks) == ("corruption", 1, "host1", (1,))
    with pytest.raises(UserError, match="start again without that host"):
        ended(
            RunFolder(tmp_path, 2),
            Outcome("corruption", corruption=Corruption({0: "a", 1: "b"}, known=False)),
            monkeypatch,
        )
    assert not (tmp_path / "checkpoints" / "step_00000008").exists()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", "corruption", "checkpoint_suspect", "started", "corruption"]
    assert "left out" not in events[3]["message"]
    assert read_orders(tmp_path).good_until == 6
    assert incident_of(tmp_path, 2, 2).kind == "unknown"  # nobody's host is named


def test_a_rewind_is_ordered_and_the_next_start_goes_past_the_data_of_the_spike(alone, tmp_path, monkeypatch):
    committed(tmp_path / "checkpoints", 4)
    spike = Outcome("rewind", spike=Rewind(7, "2 steps in a row were spikes"))
    assert ended(RunFolder(tmp_path, 1), spike, monkeypatch) == RESTART
    assert read_orders(tmp_path).rewind == {
        "number": 1, "before_step": 7, "phase": 0, "sequences": 72, "message": "2 steps in a row were spikes"
    }  # fmt: skip
    assert ended(RunFolder(tmp_path, 2), Outcome("finished"), monkeypatch) == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] in ("started", "rewind")] == ["started", "rewind", "started"]
    assert events[-1]["message"].endswith("; the data up to sequence 72 are left out")
    assert events[-1]["checkpoint"] == "step_00000004"


def supervisor(allocation: Allocation, ranks: int) -> Supervisor:
    made = object.__new__(Supervisor)
    made.job = SimpleNamespace(
        ds=SimpleNamespace(world_size=ranks), phases=[SimpleNamespace(ds_raw={"train_micro_batch_size_per_gpu": 1})]
    )  # type: ignore[assignment]
    made.args = argparse.Namespace(max_stalls=3, backoff=0.0, step_down_on_oom=False)
    made.allocation, made.run_dir = allocation, allocation.folder
    allocation.chosen = dict(list(allocation.hosts.items())[:ranks])
    return made


def test_its_host_is_left_out_at_once_where_there_is_a_spare(tmp_path):
    folder = RunFolder(tmp_path, 1)
    folder.record_failure("corruption", "silent data corruption: rank 1 on b", rank=1, host="b")
    incident = incident_of(tmp_path, 1, RESTART)
    spare = supervisor(Hosts({"a": 1, "b": 1, "c": 1}, [], tmp_path), 2)
    decision = spare._decide(incident, RESTART, 0, advanced=False)
    assert decision.give_up is None
    spare._carry_out(decision)
    assert spare.allocation.excluded == {"b"}
    for allocation in (Hosts({"a": 1, "b": 1}, [], tmp_path), ThisHost(2, [], tmp_path)):
        message = supervisor(allocation, 2)._decide(incident, RESTART, 0, advanced=False).give_up
        assert message is not None
        assert message.startswith("not restarted: silent data corruption: rank 1 on b; ")
        assert "goes on from a checkpoint before the last good probe" in message
