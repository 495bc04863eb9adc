"""What a resumed run may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError
from recipe.base.files import append_json
from recipe.base.run_config.data import Data, Mixture
from recipe.base.settings import Optimizer, RunConfig
from recipe.base.strict import load_json, strict_model
from recipe.run.checkpoint_files import SCHEMA, VERSION, checkpoint_name, topology_of
from recipe.run.folder import check_resume, check_run_folder, load_run_folder, record_start
from tests.conftest import ROOT


def config(run_dir: Path, *, total_tokens: int = 1000, mixture: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "model": "model",
            "tokenizer": "tokenizer",
            "data": {"tokens": "tokens", "seq_length": 8, "mixture": mixture or {}},
            "schedule": {"total_tokens": total_tokens, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 0},
            "checkpoint": {"every_steps": 10},
            **more,
        }
    )


IDENTITY = {"model": {"hidden_size": 8}, "tokenizer": {"eod_id": 0}, "data": {"train": {"en": {"tokens": 100}}}}


def job_of(run_dir: Path, *, ds: dict[str, Any] | None = None, identity: Any = IDENTITY, **more: Any) -> Any:
    """What `check_run_folder` reads of a job."""
    return SimpleNamespace(run=config(run_dir, **more), ds_raw=ds or {"train_batch_size": 8}, identity=identity)


def test_a_new_folder_takes_any_run_and_an_old_one_none_without_resume(tmp_path):
    job = job_of(tmp_path / "run")
    assert check_run_folder(job, resumes=False) == []
    record_start(job)
    with pytest.raises(UserError, match="already holds a run; add --resume auto"):
        check_run_folder(job, resumes=False)


def test_what_may_change_is_told_and_what_may_not_is_refused(tmp_path):
    record_start(job_of(tmp_path))

    def changes(**more: Any) -> list[str]:
        return check_run_folder(job_of(tmp_path, **more), resumes=True)

    assert changes() == []
    assert changes(total_tokens=2000) == ["schedule.total_tokens is 2,000, was 1,000"]
    assert changes(compute={"recompute": "reentrant"}) == ["compute.recompute is 'reentrant', was 'none'"]
    assert changes(ds={"train_batch_size": 16}) == ["ds_config train_batch_size is 16, was 8"]
    keeps = {"train_batch_size": 8, "recipe": {"kept_gib": 38.0, "exchange_parts": 2}}
    assert changes(ds=keeps) == [
        "ds_config recipe.kept_gib is 38.0, was not set",
        "ds_config recipe.exchange_parts is 2, was not set",
    ]
    # Where things lie does not matter, and what is done with damage is decided when there is some.
    assert changes(model="elsewhere", tokenizer="elsewhere") == []
    skip = {"tokens": "elsewhere", "seq_length": 8, "on_damage": "skip"}
    assert changes(data=skip) == ["data.on_damage is 'skip', was 'stop'"]
    assert changes(identity={**IDENTITY, "evaluation": {"eod_id": 0}}) == ["evaluation.eod_id is 0, was not set"]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"seed": 1}, "seed is 1, was 0"),
        ({"optimizer": {"betas": [0.9, 0.99]}}, r"optimizer.betas is \[0.9, 0.99\], was \[0.9, 0.95\]"),
        ({"data": {"tokens": "tokens", "seq_length": 16}}, "data.seq_length is 16, was 8"),
        ({"mixture": {"alpha": 0.7}}, "data.mixture.alpha is 0.7, was 0.5"),
        ({"data": {"tokens": "tokens", "seq_length": 8, "document_attention": True}}, "document_attention is True"),
    ],
)
def test_other_settings_of_what_is_learned_are_refused(more, problem, tmp_path):
    record_start(job_of(tmp_path))
    with pytest.raises(UserError, match=f"holds a run with other settings: .*{problem}"):
        check_run_folder(job_of(tmp_path, **more), resumes=True)


# Another value for each key that decides what is learned.
OTHER_DATA = {
    "seq_length": 16,
    "document_attention": True,
    "mixture.alpha": 0.7,
    "mixture.weights": {"en": 1.0},
    "mixture.factors": {"en": 2.0},
    "mixture.max_epochs": 2.0,
    "mixture.tiers": {"en": 1},
    "mixture.anneal": {"share": 0.1, "tier_weights": {1: 2.0}},
}
OTHER_OPTIMIZER = {"betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.2}
MAY_CHANGE = {"tokens", "on_damage", "max_damaged_share"}  # a path, and what is done with damage when there is some


def test_every_key_of_the_sections_that_are_learned_from_is_tried_here():
    data = (Data.model_fields.keys() - MAY_CHANGE - {"mixture"}) | {f"mixture.{key}" for key in Mixture.model_fields}
    assert OTHER_DATA.keys() == data
    assert OTHER_OPTIMIZER.keys() == Optimizer.model_fields.keys()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("data", *item) for item in OTHER_DATA.items()] + [("optimizer", *item) for item in OTHER_OPTIMIZER.items()],
)
def test_each_key_of_what_is_learned_is_refused(section, key, value, tmp_path):
    record_start(job_of(tmp_path))
    sections: dict[str, Any] = {"data": {"tokens": "tokens", "seq_length": 8, "mixture": {}}, "optimizer": {}}
    *parents, last = key.split(".")
    (sections[section][parents[0]] if parents else sections[section])[last] = value
    with pytest.raises(UserError, match=f"other settings: {section}.{key}"):
        check_run_folder(job_of(tmp_path, **sections), resumes=True)


def test_a_checkpoint_of_other_inputs_is_not_resumed_from(tmp_path):
    """Of the run's own checkpoint, whatever its last start was given."""
    path = tmp_path / "checkpoints" / checkpoint_name(10)
    path.mkdir(parents=True)
    ds = strict_model(DsConfig, load_json(ROOT / "ds_configs/cpu_2.json"), "ds")
    manifest = {"schema": SCHEMA, "version": VERSION, "identity": IDENTITY, "topology": topology_of(ds)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for resume in ("auto", "latest", path.name):
        job = job_of(tmp_path)
        job.ds = ds
        assert check_resume(job, resume) == path.name
        for part, value in (("model", {"hidden_size": 16}), ("tokenizer", {"eod_id": 3}), ("data", {"train": {}})):
            job.identity = {**IDENTITY, part: value}
            with pytest.raises(
                UserError, match=rf"was trained with other inputs: {part}\..*resume from another checkpoint"
            ):
                check_resume(job, resume)


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("model", {"hidden_size": 16}, "model.hidden_size is 16, was 8"),
        ("tokenizer", {"eod_id": 3}, "tokenizer.eod_id is 3, was 0"),
        ("data", {"train": {"en": {"tokens": 90}}}, "data.train.en.tokens is 90, was 100"),
        ("data", {"train": {}}, "data.train.en.tokens is not set, was 100"),
    ],
)
def test_other_inputs_under_the_same_paths_are_refused(part, value, problem, tmp_path):
    record_start(job_of(tmp_path))
    with pytest.raises(UserError, match=f"was trained with other inputs: {problem}; restore them"):
        check_run_folder(job_of(tmp_path, identity={**IDENTITY, part: value}), resumes=True)


def test_a_copied_run_folder_says_so_and_its_inputs_stay_where_they_were(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    record_start(job_of(Path("run")))
    shutil.copytree("run", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert check_run_folder(job_of(tmp_path / "here" / "run"), resumes=True) == []
    (change,) = check_run_folder(job_of(Path("copy")), resumes=True)
    assert change == f"the run folder is {tmp_path / 'copy'}, was {tmp_path / 'here/run'}: moved, or a copy of that run"
    assert load_run_folder(tmp_path / "copy")[0].data.tokens == tmp_path / "here" / "tokens"


def test_a_run_whose_beginning_was_cut_short_does_not_begin_from_nothing(tmp_path):
    """An import or a branch that was killed before it had saved anything."""
    record_start(job_of(tmp_path / "run"), began_from={"from": "exports/a"})
    for resumes in (True, False):
        with pytest.raises(
            UserError, match="was to begin from exports/a, and that ended before its first checkpoint; remove"
        ):
            check_run_folder(job_of(tmp_path / "run"), resumes=resumes)
    append_json(tmp_path / "run" / "events.jsonl", {"event": "imported", "step": 0})
    assert check_run_folder(job_of(tmp_path / "run"), resumes=True) == []


def test_a_folder_whose_first_record_was_cut_short_is_new(tmp_path):
    (tmp_path / "attempts.jsonl").write_text('{"time": 1, "comm')
    for resumes in (True, False):
        assert check_run_folder(job_of(tmp_path), resumes=resumes) == []


def test_checkpoints_without_a_record_of_their_run_are_not_taken_for_this_one(tmp_path):
    (tmp_path / "checkpoints" / "step_00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000010" / "manifest.json").touch()
    with pytest.raises(UserError, match="holds step_00000010 but no record of the run"):
        check_run_folder(job_of(tmp_path), resumes=True)


def test_a_run_of_an_older_version_is_refused_in_a_sentence(tmp_path):
    append_json(tmp_path / "attempts.jsonl", {"run_config": {}, "ds_config": {}})
    with pytest.raises(UserError, match="older version of the recipe, which did not record what the run is made of"):
        check_run_folder(job_of(tmp_path), resumes=True)


@pytest.mark.parametrize("mixture", [{"max_epochs": 2.0}, {"anneal": {"share": 0.1, "tier_weights": {1: 2.0}}}])
def test_a_longer_schedule_is_refused_where_the_data_depend_on_it(mixture, tmp_path):
    record_start(job_of(tmp_path, mixture=mixture))
    assert check_run_folder(job_of(tmp_path, mixture=mixture), resumes=True) == []
    with pytest.raises(UserError, match="changes from 1,000 to 2,000, and with it which data come next"):
        check_run_folder(job_of(tmp_path, mixture=mixture, total_tokens=2000), resumes=True)
