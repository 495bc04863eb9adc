"""Run folders of version 1 are read and gone on with, those of a newer version are refused in a sentence.

`version_1` is what the recipe wrote before its records had a version: one run, two starts, a fault between them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launch.cluster.incidents import incident_of
from recipe.base.errors import UserError
from recipe.base.files import read_json_lines
from recipe.branch import check_branch
from recipe.reading.goodput import goodput
from recipe.reading.history import read_history
from recipe.reading.model_card import _evaluation
from recipe.reading.origin import origin_of
from recipe.report import report
from recipe.run import records
from recipe.run.checkpoint_files import find, read_manifest
from recipe.run.folder import Orders, RunFolder, check_run_folder, load_run_folder, read_orders, record_start
from recipe.run.heartbeats import read_heartbeats
from recipe.run.phases.recorded import recorded_phases
from recipe.run.phases.run_data import RunData
from recipe.watch import has_begun, view

NEWER = records.SCHEMA_VERSION + 1


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "version_1", tmp_path / "run"))


def job_of(run_dir: Path) -> Any:
    """A job that goes on with the run in a folder."""
    start = records.read_starts(run_dir)[-1]
    run = records.recorded_run_config(start).model_copy(update={"run_dir": run_dir})
    phases, data = recorded_phases(start), start["identity"]["data"]
    folder: Any = SimpleNamespace(
        sizes=lambda split: {name: source["tokens"] for name, source in data[split].items()},
        manifest={"results": {"shards": []}},
        tokenizer={"eod_id": 0},
    )
    return SimpleNamespace(
        run=run, config=run, phases=phases, data=RunData(phases, [folder]), identity=start["identity"],
        ds_config=start["ds_config"], ds=phases[0].ds,
    )  # fmt: skip


def test_events_have_the_names_of_today(old):
    events = records.read_events(old)
    assert [e["event"] for e in events] == [
        "started", "checkpoint", "checkpoint", "straggler", "attempt_ended", "started", "checkpoint", "rewind"
    ]  # fmt: skip
    assert [e["attempt"] for e in events] == [1, 1, 1, 1, 1, 2, 2, 2]
    assert events[4]["message"] == "RuntimeError: device-side assert; restart in 0 s"
    assert [e["attempt"] for e in records.read_evaluations(old)] == [1, 1]
    assert [e["step"] for e in records.saved_checkpoints(old)] == [20, 40, 100]


def test_report_watch_goodput_and_card_read_it(old):
    page = report(old, None)
    assert "RuntimeError: device-side assert" in page
    assert "going back to the last checkpoint before step 90" in page
    assert "piqa" in page
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view(old))
    assert "ended: going back to the last checkpoint" in capture.get()
    spent = goodput(records.read_starts(old), records.read_events(old), read_history(old))
    assert (spent["starting"], spent["down"], spent["lost steps"]) == (20, 5, 25)
    assert "| en | 1.7000" in _evaluation(old, 100)
    assert "| piqa | acc | 0.5500" in _evaluation(old, 100)
    assert origin_of(old).context == 128


def test_what_ranks_and_starts_left_is_read(old):
    assert incident_of(old, 1, 1).message == "RuntimeError: device-side assert"
    assert sorted(records.failure_files(old, 1)) == [0, 1]
    assert read_heartbeats(old / "heartbeats", 2)[1].phase == "forward"
    orders = read_orders(old)
    rewind = {"number": 1, "before_step": 90, "sequences": 1000, "message": "16 steps in a row up to 100 were spikes"}
    assert orders == Orders(rewind, good_until=40)


def test_a_run_goes_on_in_it_and_its_file_of_starts_gets_its_name_of_today(old):
    before = (old / "incarnations.jsonl").read_bytes()
    job = job_of(old)
    (change,) = check_run_folder(job, resumes=True)
    assert "moved, or a copy" in change
    assert (old / "incarnations.jsonl").exists()  # a check changes nothing
    assert record_start(job) == 3
    assert not (old / "incarnations.jsonl").exists()
    assert (old / "attempts.jsonl").read_bytes().startswith(before)
    RunFolder(old, 3).event(event="started", step=40, checkpoint="step_00000040", message="resumed after step 40")
    assert [e["attempt"] for e in records.read_events(old)][-2:] == [2, 3]
    assert load_run_folder(old)[0] == job.run


def test_what_may_not_change_is_refused_in_it(old):
    job = job_of(old)
    job.phases = (replace(job.phases[0], run=job.run.model_copy(update={"seed": 1})),)
    with pytest.raises(UserError, match="seed is 1, was 0"):
        check_run_folder(job, resumes=True)


def test_two_files_of_starts_are_refused(old):
    (old / "attempts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"holds both attempts.jsonl and incarnations.jsonl: .*move"):
        records.append_attempt(old, {})


def test_another_run_branches_from_its_checkpoint(old):
    checkpoint = find(old / "checkpoints", None)
    manifest = read_manifest(checkpoint)
    assert check_branch(manifest, checkpoint, job_of(old), weights_only=False) == []


def test_a_renamed_setting_is_read_under_its_old_name_too(old):
    for record in (records.read_starts(old)[-1], read_manifest(find(old / "checkpoints", None))):
        assert records.recorded_run_config(record).watch.corruption_check_every_steps == 50
    assert records.read_starts(old)[-1]["run_config"]["watch"]["corruption_check_every_steps"] == 50


def test_settings_that_this_version_does_not_know_are_told(old):
    start = records.read_starts(old)[-1]
    start["run_config"]["data"]["colour"] = "red"
    with pytest.raises(UserError, match=r"recorded with settings .*\(data.colour\); use the version that recorded it"):
        records.recorded_run_config(start)


READERS = {
    "attempts.jsonl": records.read_starts,
    "metrics.jsonl": lambda folder: (records.last_metrics(folder), records.read_metrics(folder)),
    "events.jsonl": records.read_events,
    "evaluations.jsonl": records.read_evaluations,
    "evaluation.json": lambda folder: _evaluation(folder, 1),
    "results.json": lambda folder: _evaluation(folder, 1),
    "rewind.json": read_orders,
    "suspect.json": read_orders,
    "left.json": read_orders,
    "failures/attempt_0001_rank_00000.json": lambda folder: incident_of(folder, 1, 1),
    "heartbeats/rank_00000.json": lambda folder: read_heartbeats(folder / "heartbeats", 1),
}


@pytest.mark.parametrize("name", READERS)
def test_a_newer_version_is_refused(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"step": 1, records.VERSION_KEY: NEWER}) + "\n")
    with pytest.raises(
        UserError, match=f"{path} has a record of schema_version {NEWER}, .* with the version that wrote it"
    ):
        READERS[name](tmp_path)


def test_everything_that_is_written_has_the_version(tmp_path):
    folder = RunFolder(tmp_path, 1)
    folder.event(event="finished", step=1, message="")
    folder.evaluation(step=1)
    folder.metrics(1, {"loss": 1.0})
    records.append_attempt(tmp_path, {"run_config": {}})
    folder.record_failure("error", "", rank=0, host="a")
    folder.order_rewind(1, 2, 0, 3, "")
    folder.order_suspects(1, "")
    for path in [*tmp_path.glob("*.json*"), *tmp_path.glob("failures/*")]:
        lines = read_json_lines(path) if path.suffix == ".jsonl" else [json.loads(path.read_text())]
        assert [line[records.VERSION_KEY] for line in lines] == [records.SCHEMA_VERSION], path
    assert len(list(tmp_path.glob("*.json*"))) == 6
    assert records.VERSION_KEY not in records.read_events(tmp_path)[0]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_told(content, tmp_path):
    (tmp_path / "rewind.json").write_text(content)
    with pytest.raises(UserError, match=r"rewind.json .*restore it or remove it"):
        read_orders(tmp_path)


def test_the_folder_around_a_run_names_the_run(old):
    (outer := old.parent / "outer").mkdir()
    with pytest.raises(UserError, match=r"; give the run_dir of a training run$"):
        records.read_starts(outer)
    record_start(job_of(Path(shutil.copytree(old, outer / "run"))))
    for read in (records.read_starts, has_begun):
        with pytest.raises(UserError, match=rf"no run \(no attempts.jsonl\); give its folder {outer}/run$"):
            read(outer)


def test_a_run_is_called_by_the_folder_that_says_something(tmp_path):
    assert records.run_name(tmp_path / "pretrain_30b" / "run") == "pretrain_30b"
    assert records.run_name(tmp_path / "decay_7") == "decay_7"
