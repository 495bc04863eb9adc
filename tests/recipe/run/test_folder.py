"""What a resumed run may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError
from recipe.base.files import append_json
from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.data import Data, Mixture
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import Optimizer, RunConfig
from recipe.base.strict import load_json, strict_model
from recipe.run.checkpoint_files import SCHEMA, VERSION, checkpoint_name, topology_of
from recipe.run.folder import check_resume, check_run_folder, load_run_folder, record_start
from recipe.run.job import Job
from recipe.run.phases.run_data import RunData
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


SHAPE = load_model_shape(ROOT / "recipe/configs/models/tiny")
MODEL = SHAPE.model_dump(mode="json")
IDENTITY = {"model": MODEL, "tokenizer": {"eod_id": 0}, "data": {"train": {"en": {"tokens": 100}}}}
DS_RAW = load_json(ROOT / "ds_configs/cpu_2.json")


class Folder:
    """In for a token folder."""

    tokenizer: dict[str, Any] = {"eod_id": 0}

    def __init__(self, sizes: dict[str, int]):
        self._sizes = sizes
        facts = {"split": "train", "prefix": "p", "text_bytes": 1, "sha256": {}}
        self.manifest = {
            "results": {"shards": [{**facts, "source": name, "tokens": tokens} for name, tokens in sizes.items()]}
        }

    def sizes(self, split: str) -> dict[str, int]:
        return self._sizes


def job_of(
    run_dir: Path, *, ds: dict[str, Any] | None = None, identity: Any = IDENTITY, zh: int = 10**6, **more: Any
) -> Job:
    """What `check_run_folder` reads of a job."""
    run, raw = config(run_dir, **more), ds or DS_RAW
    phases = resolve_phases(run, SHAPE, strict_model(DsConfig, raw, "ds"), raw)
    folders: Any = [Folder({"en": 10**5, "zh": zh if phase.number else 10**6}) for phase in phases]
    return Job(run, raw, phases, RunData(phases, folders), {}, [], [], identity)


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
    assert changes(ds={**DS_RAW, "gradient_clipping": 0.5}) == ["ds_config gradient_clipping is 0.5, was 1.0"]
    keeps = {**DS_RAW, "recipe": {"kept_gib": 38.0, "exchange_parts": 2}}
    assert changes(ds=keeps) == [
        "ds_config recipe.kept_gib is 38.0, was 0.0",
        "ds_config recipe.exchange_parts is 2, was 1",
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
        assert check_resume(job, resume) == path.name
        for part, value in (
            ("model", {**MODEL, "hidden_size": 16}),
            ("tokenizer", {"eod_id": 3}),
            ("data", {"train": {}}),
        ):
            job = job_of(tmp_path, identity={**IDENTITY, part: value})
            with pytest.raises(
                UserError, match=rf"was trained with other inputs: {part}\..*resume from another checkpoint"
            ):
                check_resume(job, resume)


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("model", {**MODEL, "hidden_size": 16}, f"model.hidden_size is 16, was {SHAPE.hidden_size}"),
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


@pytest.mark.parametrize(
    "mixture",
    [{"max_epochs": 1.0}, {"anneal": {"share": 0.3, "tier_weights": {1: 2.0, 2: 1.0}}, "tiers": {"en": 1, "zh": 2}}],
)
def test_a_longer_schedule_is_refused_where_the_data_depend_on_it(mixture, tmp_path):
    tokens = 10 * 4096 * 8
    record_start(job_of(tmp_path, mixture=mixture, total_tokens=tokens))
    assert check_run_folder(job_of(tmp_path, mixture=mixture, total_tokens=tokens), resumes=True) == []
    with pytest.raises(
        UserError, match=r"schedule.total_tokens is 655,360, was 327,680.* would read other data"
    ) as error:
        check_run_folder(job_of(tmp_path, mixture=mixture, total_tokens=2 * tokens), resumes=True)
    assert "its stretches would change" in str(error.value)


PHASES: list[dict[str, Any]] = [
    {"name": "first", "tokens": 400},
    {"name": "second", "tokens": 400, "batch_tokens": 128},
    {"name": "third", "data": {"seq_length": 16}},
]


def phases_of(run_dir: Path, reached: int, **changes: dict[str, Any]) -> list[str]:
    """What is said of a run in a phase that goes on with other settings of phases, by their names."""
    path = run_dir / "checkpoints" / checkpoint_name(10)
    record_start(job_of(run_dir, phases=PHASES))
    path.mkdir(parents=True, exist_ok=True)
    manifest = {"schema": SCHEMA, "version": VERSION, "train_state": {"phase": reached}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    phases = [{**phase, **changes.get(phase["name"], {})} for phase in PHASES]
    return check_run_folder(job_of(run_dir, phases=phases), resumes=True)


def test_later_phases_may_change_and_are_told(tmp_path):
    assert phases_of(tmp_path, 1) == []
    assert phases_of(tmp_path, 1, third={"batch_tokens": 512}) == ["phases.2.batch_tokens is 512, was not set"]
    assert phases_of(tmp_path, 1, second={"batch_tokens": 256}) == ["phases.1.batch_tokens is 256, was 128"]
    mixture = {"data": {"mixture": {"alpha": 0.9}}}
    assert phases_of(tmp_path, 0, second=mixture) == ["phases.1.data.mixture.alpha is 0.9, was not set"]


def test_a_later_phase_may_not_move_what_an_earlier_one_reads(tmp_path):
    """Longer sequences have a region of each source, and the others what is left."""
    with pytest.raises(UserError, match=r"phases.2.data.seq_length is 32, was 16; so phase 0 would read other data"):
        phases_of(tmp_path, 1, third={"data": {"seq_length": 32}})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"data": {"seq_length": 32}}, "phases.1.data.seq_length is 32, was 8"),
        ({"data": {"mixture": {"alpha": 0.9}}}, "phases.1.data.mixture.alpha is 0.9"),
        ({"rope_parameters": {"rope_theta": 5e6}}, "phases.1.rope_parameters.rope_theta is 5000000.0"),
    ],
    ids=["seq_length", "mixture", "rope"],
)
def test_a_phase_that_has_begun_keeps_its_data_and_its_positions(change, problem, tmp_path):
    with pytest.raises(UserError, match=f"other settings: {problem}"):
        phases_of(tmp_path, 1, second=change)


def test_a_run_has_the_phases_that_have_begun(tmp_path):
    phases_of(tmp_path, 2)
    with pytest.raises(UserError, match="is in phase 2 of its run, and the run config has 1"):
        check_run_folder(job_of(tmp_path), resumes=True)


def test_a_run_without_phases_may_be_given_some(tmp_path):
    record_start(job_of(tmp_path))
    changes = check_run_folder(job_of(tmp_path, phases=[*PHASES[:1], {"name": "last"}]), resumes=True)
    assert changes[0] == "phases.0.name is 'first', was not set"
