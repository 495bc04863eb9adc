"""Trackers get what TensorBoard gets, through their own clients without a network, and can do no harm."""

from __future__ import annotations

import errno
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recipe.base.settings import Logging
from recipe.run.folder import RunFolder
from recipe.run.records import read_events
from recipe.telemetry import tracker_clients, trackers
from recipe.telemetry.metrics import MetricsWriter, tagged, tagged_evaluation
from recipe.telemetry.trackers import Tracker
from tests.patience import PATIENCE_S
from tests.recipe.reading.conftest import WrittenRun
from tests.recipe.telemetry.test_metrics import ALL_VALUES

HELD_OUT = {"en": {"tokens": 9, "loss": 3.0, "perplexity": 20.0, "bits_per_byte": 1.0}}
VARIABLES = (
    "WANDB_MODE",
    "WANDB_DIR",
    "WANDB_NAME",
    "WANDB_PROJECT",
    "WANDB_RUN_ID",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
)
SET_BY_US = ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE")


@pytest.fixture
def run(tmp_path, monkeypatch) -> WrittenRun:
    for name in (*VARIABLES, *SET_BY_US):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(Tracker, "CLOSE_S", 120.0)
    return WrittenRun(tmp_path / "run_7")


def attempt(run: WrittenRun, names: list[str], steps: list[int], end: str = "finished") -> None:
    """An attempt that logs these steps, evaluates after the last, and ends so; "": breaks off."""
    run.start()
    writer = MetricsWriter(RunFolder(run.path, run.number), 10, steps[0], Logging(trackers=names))
    for step in steps:
        writer.write(step, {**ALL_VALUES, "loss": step + run.number / 10})
    writer.evaluation(steps[-1], HELD_OUT, 1.0)
    if end:
        writer.event({"event": end, "step": steps[-1], "message": end})
    writer.close()


def expected_tags() -> set[str]:
    return {*tagged(ALL_VALUES), *tagged_evaluation(HELD_OUT)}


def wandb_records(path: Path) -> Iterator[Any]:
    """W&B's offline file: a header of 7 bytes, then a log of LevelDB, blocks of 32 KiB with chunks of crc, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if len(data) < at + 7 + length:  # its end is not written yet
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def whole_wandb_records(path: Path) -> list[Any]:
    """All records up to the last; W&B's process writes them after the client's `finish` has returned."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        records = list(wandb_records(path)) if path.stat().st_size > 7 else []
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline
        time.sleep(0.01)


def of_wandb(run: WrittenRun) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The config and the history of all attempts, in order."""
    config: dict[str, Any] = {}
    history: list[dict[str, float]] = []
    for path in sorted(
        run.path.glob("trackers/wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns
    ):
        for record in whole_wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                config["display_name"], config["run_id"] = record.run.display_name, record.run.run_id
            elif record.WhichOneof("record_type") == "history":
                items = record.history.item
                history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return config, history


def test_wandb_has_tensorboards_tags_and_a_resumed_run_goes_on(run, monkeypatch):
    attempt(run, ["wandb"], [1, 2, 3], end="")
    assert of_wandb(run)[0]["display_name"] == "run_7"
    time.sleep(1.0)  # W&B names an offline folder by the second, and no two attempts of a run begin in the same
    monkeypatch.setenv("WANDB_NAME", "of the environment")
    attempt(run, ["wandb"], [3, 4])
    config, history = of_wandb(run)
    assert [row["train/step"] for row in history] == [1, 2, 3, 3, 3, 4, 4]
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    assert losses == [1.1, 2.1, 3.1, 3.2, 4.2]  # step 3 once of each attempt
    assert {tag for row in history for tag in row if not tag.startswith("_")} == {*expected_tags(), "train/step"}
    assert [row["eval/en/loss"] for row in history if "eval/en/loss" in row] == [3.0, 3.0]
    assert config["display_name"] == "of the environment"
    assert config["run_config"]["schedule"]["peak_lr"] > 0
    assert {"ds_config", "packages"} <= config.keys()
    files = list(run.path.glob("trackers/wandb/offline-run-*/run-*.wandb"))
    assert {path.stem for path in files} == {f"run-{json.loads((run.path / 'trackers/wandb.json').read_text())['id']}"}
    assert len(files) == 2


def of_mlflow(run: WrittenRun) -> tuple[Any, Callable[[str], list[tuple[int, float]]]]:
    """The only run, and what gives the steps and values of a metric."""
    from mlflow import MlflowClient

    client = MlflowClient((run.path / "trackers" / "mlruns").as_uri())
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    (only,) = client.search_runs(experiments)
    return only, lambda tag: [(m.step, m.value) for m in client.get_metric_history(only.info.run_id, tag)]


def test_mlflow_has_tensorboards_tags_and_a_resumed_run_goes_on(run):
    attempt(run, ["mlflow"], [1, 2, 3], end="")
    assert of_mlflow(run)[0].info.status == "FAILED"
    run._start["ds_config"]["gradient_clipping"] = 0.5
    attempt(run, ["mlflow"], [3, 4])
    only, history = of_mlflow(run)
    expected = {*expected_tags() - {"moe/aux_loss"}, "moe/aux_loss/all"}  # its files are in a folder of that name
    assert set(only.data.metrics) == expected
    assert history("train/loss") == [(1, 1.1), (2, 2.1), (3, 3.1), (3, 3.2), (4, 4.2)]
    assert history("eval/en/bits_per_byte") == [(3, 1.0), (4, 1.0)]
    assert (only.info.run_name, only.info.status) == ("run_7", "FINISHED")
    assert float(only.data.params["run_config.schedule.peak_lr"]) > 0
    assert only.data.params["ds_config.gradient_clipping"] == "1.0"
    assert only.data.tags["ds_config.gradient_clipping"] == "0.5"
    (opened,) = {e["message"] for e in read_events(run.path) if e["event"] == "tracker"}
    assert "mlflow ui --backend-store-uri file://" in opened


def test_names_and_values_that_mlflow_refuses_reach_it_in_another_form(run):
    run.start()
    client = tracker_clients.opener("mlflow", run.path)()
    client.log({"data/tokens/中文 (web)": 10**400, "train/loss": float("nan")}, 1, 0.0)
    only, _ = of_mlflow(run)
    assert only.data.metrics["data/tokens/中文 _web_"] == float("inf")


def test_an_id_that_cannot_be_written_is_used_again_in_the_same_attempt(run, monkeypatch):
    """Else a server would get a new run with every try."""
    run.start()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    open_client = tracker_clients.opener("mlflow", run.path)
    with monkeypatch.context() as disk:
        disk.setattr(tracker_clients, "write_record", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                open_client()
    open_client()
    only, _ = of_mlflow(run)
    assert json.loads((run.path / "trackers" / "mlflow.json").read_text())["id"] == only.info.run_id


class Client:
    """Takes steps; raises in as many calls as `fails` says."""

    where = "logs here"

    def __init__(self, fails: float = 0, error: BaseException | None = None):
        self.fails, self.error = fails, error or ConnectionError("no route\nto host")
        self.calls, self.steps, self.ended = 0, [], "open"
        self.changed = threading.Condition()

    def open(self) -> Client:
        return self

    def log(self, tags: dict[str, float], step: int, logged_at: float) -> None:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
            if self.calls <= self.fails:
                raise self.error
            self.steps.append(step)

    def finish(self, ended: str | None) -> None:
        self.ended = ended

    def wait_for_calls(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.calls >= count, PATIENCE_S)


def messages(tracker: Tracker) -> list[str]:
    return [event["message"] for event in tracker.take_events()]


def test_a_tracker_that_always_fails_ends_nothing_and_is_told_once(tmp_path, monkeypatch, capsys):
    class Broken:
        def __init__(self, *_: Any):
            raise SystemExit("wandb: ERROR api_key not configured")

    monkeypatch.setattr(tracker_clients, "WandbRun", Broken)
    run = WrittenRun(tmp_path / "run")
    attempt(run, ["wandb"], [1, 2, 3])
    failed, left = [e for e in read_events(run.path) if e["event"] == "tracker"]
    assert failed["message"].startswith(
        "tracker wandb: SystemExit: wandb: ERROR api_key not configured; training goes on"
    )
    assert left["message"] == "tracker wandb: 4 logged steps or evaluations did not reach it; they are in metrics.jsonl"
    assert left["step"] == 3
    assert capsys.readouterr().out.count("tracker wandb") == 2


def test_what_a_tracker_refused_for_a_while_reaches_it_later_in_order(monkeypatch):
    monkeypatch.setattr(Tracker, "RETRY_S", 0.001)
    client = Client(fails=3)
    tracker = Tracker("wandb", client.open)
    for step in (1, 2, 3):
        tracker.numbers({"train/loss": 1.0}, step)
    client.wait_for_calls(6)
    tracker.event({"event": "stopped", "step": 3, "message": ""})
    tracker.close()
    assert (client.steps, client.ended) == ([1, 2, 3], "stopped")
    assert messages(tracker) == [
        "tracker wandb: logs here",
        "tracker wandb: ConnectionError: no route to host; training goes on, and what is logged waits for it",
        "tracker wandb: it works again",
    ]


def test_a_step_that_a_tracker_never_takes_is_given_up(monkeypatch):
    monkeypatch.setattr(Tracker, "RETRY_S", 0.001)
    client = Client(fails=trackers.MOST_TRIES)
    tracker = Tracker("mlflow", client.open)
    tracker.numbers({}, 1)
    tracker.numbers({}, 2)
    client.wait_for_calls(trackers.MOST_TRIES + 1)
    tracker.close()
    assert client.steps == [2]
    assert messages(tracker)[-1] == "tracker mlflow: it works again; 1 logged steps or evaluations are lost to it"


def test_what_a_slow_tracker_lost_is_told(monkeypatch):
    monkeypatch.setattr(Tracker, "MOST_PENDING", 5)
    client, called, goes_on = Client(), threading.Event(), threading.Event()

    def slow_open() -> Client:
        called.set()
        goes_on.wait()
        return client

    tracker = Tracker("mlflow", slow_open)
    tracker.numbers({}, 0)
    assert called.wait(60)
    for step in range(1, 9):
        tracker.numbers({}, step)
    goes_on.set()
    tracker.close()
    assert client.steps == [0, 4, 5, 6, 7, 8]
    assert messages(tracker)[1:] == ["tracker mlflow: it works again; 3 logged steps or evaluations are lost to it"]


@pytest.mark.parametrize("password", ["secret", "sec@ret"])
def test_passwords_in_addresses_reach_no_message(password):
    """MLflow's client repeats the address of its server in its errors."""
    address = f"https://me:{password}@host/a@b"
    client = Client(fails=1, error=ConnectionError(f"API request to {address} failed"))
    client.where = f"logs to {address}"
    tracker = Tracker("mlflow", client.open)
    tracker.numbers({}, 1)
    client.wait_for_calls(1)
    tracker.close()
    logs, failed, *_ = messages(tracker)
    assert logs == "tracker mlflow: logs to https://host/a@b"
    assert "API request to https://host/a@b failed" in failed


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end(monkeypatch):
    monkeypatch.setattr(Tracker, "MOST_PENDING", 5)
    monkeypatch.setattr(Tracker, "CLOSE_S", 0.01)
    client, goes_on = Client(), threading.Event()
    client.log = lambda *_: goes_on.wait()
    tracker = Tracker("mlflow", client.open)
    for step in range(100):
        tracker.numbers({}, step)
    tracker.close()
    assert "did not end within 0.01 s" in messages(tracker)[-1]
    assert len(tracker._pending) <= 5
    goes_on.set()
    tracker._thread.join()


def test_a_run_without_trackers_starts_no_thread_for_them(tmp_path):
    before = threading.active_count()
    MetricsWriter(RunFolder(tmp_path, 1), 10, 1).close()
    assert threading.active_count() == before
    assert not (tmp_path / "trackers").exists()
