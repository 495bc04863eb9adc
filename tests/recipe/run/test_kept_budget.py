"""A budget for kept results is lowered by steps that ran out of memory, by nothing else, down to nothing."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipe import train
from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.files import append_json
from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.strict import strict_model
from recipe.base.tables import StageLines
from recipe.engine import collectives, session
from recipe.reading.planned import _same_setup_since
from recipe.run import folder as run_folder
from recipe.run.checkpoint_files import topology_of
from recipe.run.folder import RunFolder, check_run_folder, load_run_folder, record_start
from recipe.run.job import Job
from recipe.run.kept_budget import (
    KeptBudget,
    given_budget,
    held_gib,
    lowered,
    next_budgets,
    records_of,
    tell_of_lowered,
    with_budgets,
)
from recipe.run.phases.run_data import RunData
from recipe.run.records import ATTEMPTS, ds_config_used, read_attempts, read_events, read_failures
from recipe.training import start as training_start
from tests.conftest import ROOT
from tests.recipe.run.test_folder import Folder, config

_, DS_RAW = load_ds_config(ROOT / "ds_configs/a100_256.json")  # 8 sequences a rank, EP 8
SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
IDENTITY = {"model": SHAPE.model_dump(mode="json"), "tokenizer": {"eod_id": 0}, "data": {}}


def job_of(
    run_dir: Path, kept_gib: float | None = 38.0, recompute: str = "selective", phases: Any = None, **recipe: Any
) -> Job:
    """A job of the flagship whose ds_config has this budget; none: no section of it at all."""
    raw = {name: section for name, section in DS_RAW.items() if name != "recipe"}
    raw |= {} if kept_gib is None else {"recipe": {"kept_gib": kept_gib, **recipe}}
    sections = {"data": {"tokens": "tokens", "seq_length": 4096}, "phases": phases or []}
    run = config(run_dir, total_tokens=10**10, compute={"recompute": recompute}, **sections)
    resolved = resolve_phases(run, SHAPE, strict_model(DsConfig, raw, "ds_config"), raw)
    folders: Any = [Folder({"en": 10**12}) for _ in resolved]
    return Job(run, raw, resolved, RunData(resolved, folders), {}, [], [], IDENTITY)


def next_budget(run_dir: Path, job: Job) -> KeptBudget:
    """That of the first phase."""
    return next_budgets(run_dir, job)[0]


def start(job: Job) -> tuple[Job, RunFolder, KeptBudget]:
    """As rank 0 of a start does: the job that the engine is built of, the folder of the attempt, and its budget."""
    budgets = next_budgets(job.run.run_dir, job)
    used = with_budgets(job, [budget.gib for budget in budgets])
    folder = RunFolder(job.run.run_dir, record_start(job, **records_of(used)))
    tell_of_lowered(folder, budgets)
    return used, folder, budgets[0]


def fail(folder: RunFolder, kind: str = "out_of_memory", of_rank: int = 1, **facts: Any) -> None:
    folder.record_failure(kind, "why", rank=of_rank, host="h", **facts)


def budgets_of(job: Job, starts: int, **facts: Any) -> list[float]:
    """Of so many starts, each of which runs out of memory."""
    gibs = []
    for _ in range(starts):
        _, folder, budget = start(job)
        fail(folder, **facts)
        gibs.append(budget.gib)
    return gibs


@pytest.mark.parametrize(
    ("held", "whole", "missing", "left"),
    [
        (36.0, 36.0, 0.0, 27.0),  # a quarter of all
        (18.5, 36.0, 0.0, 9.5),
        (36.0, 36.0, 2.0, 27.0),
        (36.0, 36.0, 16.0, 20.0),  # what was missing is more
        (9.0, 36.0, 0.0, 0.0),
        (8.0, 36.0, 0.0, 0.0),
        (36.0, 36.0, 80.0, 0.0),
    ],
)
def test_the_arithmetic(held, whole, missing, left):
    assert lowered(held, whole, missing) == pytest.approx(left)


@pytest.mark.parametrize("kept_gib", [38.0, 1000.0, 3.0, 0.5], ids=str)
def test_each_time_that_memory_runs_out_less_is_kept_until_nothing_is(kept_gib, tmp_path):
    job, held = job_of(tmp_path, kept_gib), []
    for _ in range(5):
        used, folder, _ = start(job)
        held.append(held_gib(used))
        fail(folder)
    assert held[0] <= kept_gib
    assert all(after < before for before, after in itertools.pairwise(held) if before)
    assert held[-1] == 0
    assert start(job)[2] == KeptBudget(kept_gib, 0.0, 0.0)


def test_a_second_look_lowers_no_further(tmp_path):
    job = job_of(tmp_path)
    _, folder, _ = start(job)
    fail(folder)
    assert next_budget(tmp_path, job) == next_budget(tmp_path, job)
    used, _, budget = start(job)
    assert used.ds.recipe.kept_gib == budget.gib < 38
    assert start(job)[2] == KeptBudget(38.0, budget.gib, budget.gib)  # a start without a failure of the one before


def test_what_was_missing_is_taken_off_at_once(tmp_path):
    job = job_of(tmp_path)
    used, folder, _ = start(job)
    fail(folder, of_rank=2, missing_gib=3.0)
    fail(folder, of_rank=1, missing_gib=20.0)
    assert next_budget(tmp_path, job).gib == pytest.approx(held_gib(used) - 20.0)


@pytest.mark.parametrize(
    "failures",
    [
        [],
        [{"kind": "error"}],
        [{"kind": "hang"}],
        [{"kind": "peer_lost", "witness": True}],
        [{"kind": "corruption"}],
        [{"kind": "user_error"}],
        [{"missing_gib": None}],  # of the host, or before the first step
        [{"witness": True}],
        [{"kind": "error"}, {"of_rank": 2}],  # the later one is a consequence
    ],
    ids=str,
)
def test_other_failures_lower_nothing(failures, tmp_path):
    job = job_of(tmp_path)
    _, folder, _ = start(job)
    for facts in failures:
        fail(folder, **facts)
    assert next_budget(tmp_path, job) == KeptBudget(38.0, 38.0, 38.0)
    assert not start(job)[2].sentences
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("recompute", ["none", "reentrant", "non_reentrant"])
def test_where_nothing_is_kept_out_of_memory_lowers_nothing(recompute, tmp_path):
    job = job_of(tmp_path, recompute=recompute)
    assert budgets_of(job, 3) == [38.0] * 3
    assert budgets_of(job_of(tmp_path / "off", 0.0), 3) == [0.0] * 3
    assert budgets_of(job_of(tmp_path / "no_section", None), 3) == [0.0] * 3


def test_a_lowered_budget_stays_through_other_failures_until_the_ds_config_has_another(tmp_path):
    job = job_of(tmp_path)
    first, second = budgets_of(job, 2)
    _, folder, budget = start(job)
    assert first > second > budget.gib
    fail(folder, "error")
    assert start(job)[2].gib == budget.gib
    assert start(job_of(tmp_path, recompute="non_reentrant"))[2].gib == budget.gib
    assert start(job_of(tmp_path, exchange_parts=2))[2].gib == budget.gib
    other = start(job_of(tmp_path, 30.0))[2]
    assert (other.gib, other.sentences) == (30.0, [])
    assert start(job)[2].gib == 38.0  # changed once more


def test_the_user_is_told_once_as_an_event_and_at_each_start_in_a_sentence(tmp_path):
    job = job_of(tmp_path)
    budgets_of(job, 1)
    _, _, budget = start(job)
    (told,) = budget.sentences
    assert told == (
        f"the last attempt ran out of memory: recomputed layers keep at most {budget.gib:.4g} GiB of results, 38 GiB before; "
        "recipe.kept_gib 38 of the ds_config holds again once it is changed"
    )
    (again,) = start(job)[2].sentences
    assert again.startswith(
        f"an earlier attempt ran out of memory: recomputed layers keep at most {budget.gib:.4g} GiB"
    )
    (event,) = read_events(tmp_path)
    assert (event["event"], event["attempt"], event["step"]) == ("kept_lowered", 2, 0)
    assert (event["kept_gib"], event["was_gib"], event["message"]) == (budget.gib, 38.0, told)


def test_the_record_has_what_the_file_said_and_what_was_used(tmp_path):
    job = job_of(tmp_path, exchange_parts=2)
    budgets_of(job, 1)
    used, _, budget = start(job)
    assert used.ds_raw == job.ds_raw
    assert used.engine_ds_raw == {**DS_RAW, "recipe": {"kept_gib": budget.gib, "exchange_parts": 2}}
    assert job.engine_ds_raw is job.ds_raw
    first, second = read_attempts(tmp_path)
    assert first["ds_config"] == second["ds_config"] == job.ds_raw == load_run_folder(tmp_path)[1]
    assert second["kept"] == {
        "budget_gib": budget.gib, "held_gib": held_gib(used), "layers": dict(used.kept.layers),
    }  # fmt: skip
    assert ds_config_used(second) == used.engine_ds_raw
    assert check_run_folder(job, resumes=True) == []
    other = job_of(tmp_path, 20.0, exchange_parts=4)
    assert topology_of(other.ds) == topology_of(used.ds)  # its checkpoints need no reshard
    assert check_run_folder(other, resumes=True) == [
        "ds_config recipe.kept_gib is 20.0, was 38.0",
        "ds_config recipe.exchange_parts is 4, was 2",
    ]
    # What was measured with the first budget is not of the second one's plan.
    assert _same_setup_since([first, second]) == second["time"]
    assert _same_setup_since([first, first]) == first["time"]


def test_a_start_whose_record_was_cut_gets_what_it_would_have_had(tmp_path):
    job = job_of(tmp_path)
    budgets_of(job, 1)
    expected = next_budget(tmp_path, job)
    with open(tmp_path / ATTEMPTS, "a") as handle:
        handle.write('{"time": 1.0, "kept": {"budg')
    assert next_budget(tmp_path, job) == expected


def test_a_run_of_an_older_version_has_the_budget_of_its_file(tmp_path):
    job = job_of(tmp_path)
    append_json(tmp_path / ATTEMPTS, {})  # and a supervisor's tests write no more than this
    fail(RunFolder(tmp_path, 1))
    assert next_budget(tmp_path, job).gib == 38.0
    assert "missing_gib" in read_failures(tmp_path, 1)[0]
    assert given_budget({"recipe": {}}) == 0.0
    assert replace(job, config=job.config).kept == job.kept


def test_each_phase_has_a_budget_and_the_one_that_ran_out_of_memory_a_lower_one(tmp_path):
    """The second phase has its own in the run config, the third that of the ds_config."""
    long = {"data": {"seq_length": 8192}, "rope_parameters": {"rope_theta": 5e6}}
    phases = [{"name": "a", "tokens": 10**9}, {"name": "b", "tokens": 10**9, "kept_gib": 20.0, **long}, {"name": "c"}]
    job = job_of(tmp_path, phases=phases)
    assert [budget.gib for budget in next_budgets(tmp_path, job)] == [38.0, 20.0, 38.0]
    _, folder, _ = start(job)
    fail(folder, phase=1)
    before = read_attempts(tmp_path)[-1]["kept_in_phases"][1]["held_gib"]
    budgets = next_budgets(tmp_path, job)
    assert [budget.lowered for budget in budgets] == [False, True, False]
    assert budgets[1].gib == pytest.approx(0.75 * before)
    used, _, _ = start(job)
    assert used.at(1).engine_ds_raw["recipe"]["kept_gib"] == budgets[1].gib
    assert used.at(2).engine_ds_raw["recipe"]["kept_gib"] == 38.0
    (event,) = read_events(tmp_path)
    assert (event["event"], event["phase"], event["kept_gib"]) == ("kept_lowered", 1, budgets[1].gib)


def test_the_engine_is_built_with_the_lowered_budget(tmp_path, monkeypatch):
    """What recipe/train.py hands to the engine, with a process group, a job and an engine that are not there."""
    job, built = job_of(tmp_path), []

    def train_on(used: Job, *_: Any, **__: Any) -> int:
        training_start._build(used, StageLines(lambda _: None), "")
        return 0

    monkeypatch.setattr(train, "answer_early_stops", lambda: SimpleNamespace(watch=lambda _: None))
    for name, value in {
        "required_world_size": 256,
        "check_job": job,
        "check_run_folder": [],
        "describe": "",
        "_data_of": "",
    }.items():
        monkeypatch.setattr(train, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    monkeypatch.setattr(collectives, "from_first_rank", lambda make: make())
    monkeypatch.setattr(run_folder, "lock_run_folder", lambda _: None)
    monkeypatch.setattr(training_start, "train_on", train_on)
    monkeypatch.setattr(
        training_start, "build_engine", lambda _, ds_raw, **words: built.append((ds_raw, words["seq_length"]))
    )
    assert train.main(["--config", "run.yaml", "--deepspeed_config", "ds.json"]) == 0
    fail(RunFolder(tmp_path, 1))
    lower = next_budget(tmp_path, job).gib
    assert train.main(["--config", "run.yaml", "--deepspeed_config", "ds.json"]) == 0
    assert [(ds_raw["recipe"]["kept_gib"], seq_length) for ds_raw, seq_length in built] == [(38.0, 4096), (lower, 4096)]
    assert lower < 38
