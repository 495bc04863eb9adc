"""Run configs and ds_configs are read strictly: any wrong key or value is named before anything starts."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from recipe.base.ds_config import (
    REFUSED_KEYS,
    Bf16,
    CheckpointSection,
    CommsLogger,
    DataTypes,
    DsConfig,
    ExpertParallel,
    ZeroOptimization,
    load_ds_config,
)
from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import RunConfig, load_run_config
from recipe.base.strict import load_json
from tests.conftest import ROOT

RUN_CONFIGS = sorted((ROOT / "recipe/configs/runs").glob("*.yaml"))
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
MODELS = sorted(p.parent for p in (ROOT / "recipe/configs/models").glob("*/config.json"))


def keys_of(model: type[BaseModel], prefix: tuple[str, ...] = ()):
    """Paths of every key that a settings model knows, sections included."""
    from recipe.base.strict import _inner_model

    for name, field in model.model_fields.items():
        yield (*prefix, name)
        inner = _inner_model(field.annotation)
        if inner is not None:
            yield from keys_of(inner, (*prefix, name))


def misspelt(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """A copy with the last key of `path` misspelt, its section made if need be."""
    values = copy.deepcopy(values)
    section = values
    for name in path[:-1]:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[path[-1] + "x"] = section.pop(path[-1], None)
    return values


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda p: p.name)
def test_every_shipped_run_config_is_valid(path):
    run = load_run_config(path)
    assert load_model_shape(ROOT / run.model)


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda p: p.name)
def test_every_shipped_ds_config_is_valid_and_named_after_its_ranks(path):
    checked, _ = load_ds_config(path)
    assert path.stem.split("_")[1] == str(checked.world_size)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_every_shipped_model_is_valid(path):
    assert load_model_shape(path).problems() == []


@pytest.mark.parametrize("key", list(keys_of(RunConfig)), ids=".".join)
def test_a_typo_in_any_key_of_the_run_config_names_the_nearest(key, tmp_path):
    values = yaml.safe_load(RUN_CONFIGS[0].read_text(encoding="utf-8"))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(misspelt(values, key)))
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    assert f"unknown key '{'.'.join(key)}x'; did you mean '{key[-1]}'?" in str(caught.value)


@pytest.mark.parametrize("key", list(keys_of(DsConfig)), ids=".".join)
def test_a_typo_in_any_key_of_the_ds_config_names_the_nearest(key, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(misspelt(load_json(DS_CONFIGS[0]), key)))
    with pytest.raises(ConfigError) as caught:
        load_ds_config(path)
    assert f"unknown key '{'.'.join(key)}x'; did you mean '{key[-1]}'?" in str(caught.value)


def test_our_ds_config_keys_are_deepspeeds_own():
    import deepspeed.runtime as runtime
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for ours, theirs in (
        (ZeroOptimization, DeepSpeedZeroConfig),
        (Bf16, DeepSpeedBF16Config),
        (CommsLogger, CommsLoggerConfig),
    ):
        assert set(ours.model_fields) <= {field.alias or name for name, field in theirs.model_fields.items()}, ours
    assert set(ExpertParallel.model_fields) <= {field.name for field in dataclasses.fields(AutoEPConfig)}
    # The top-level ones are read by name, here and there.
    folder = Path(runtime.__file__).parent
    read = "".join(path.read_text() for path in (*folder.glob("*.py"), *(folder.parent / "comm").glob("*.py")))
    top = {*DsConfig.model_fields, *DataTypes.model_fields, *CheckpointSection.model_fields}
    assert {key for key in top if f'"{key}"' not in read and f"'{key}'" not in read} == set()


def ds_problems(tmp_path, **changes) -> str:
    values = load_json(ROOT / "ds_configs/cpu_2.json")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        load_ds_config(path)
    return str(caught.value)


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_keys_with_another_owner_are_refused_with_where_to_go(key, tmp_path):
    said = ds_problems(tmp_path, **{key.replace(".", "__"): 1})
    assert f"'{key}' {REFUSED_KEYS[key]}" in said
    assert "unknown key" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_clipping": "auto"}, "'gradient_clipping' is \"auto\""),
        ({"zero_optimization__reduce_bucket_size": "auto"}, "'zero_optimization.reduce_bucket_size' is \"auto\""),
        ({"train_batch_size": 15}, "train_batch_size 15 is not a multiple of"),
        ({"expert_parallel__autoep_size": 3}, "autoep_size 3 does not divide the 2 ranks"),
        ({"train_micro_batch_size_per_gpu": True}, "'train_micro_batch_size_per_gpu' is True"),
        ({"expert_parallel__enabled": False}, "'expert_parallel.enabled' is False"),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization__stage": 0},
            "stage 0 with bf16 cannot add gradients in fp32",
        ),
    ],
)
def test_ds_configs_that_cannot_work_are_refused(changes, said, tmp_path):
    assert said in ds_problems(tmp_path, **changes)


def test_all_problems_are_reported_at_once(tmp_path):
    said = ds_problems(
        tmp_path, gradient_clippin=1.0, optimizer={}, train_batch_size="auto", expert_parallel__autoep_siz=2
    )
    for part in ("gradient_clippin", "optimizer", "'train_batch_size' is \"auto\"", "autoep_siz"):
        assert part in said


def test_a_ds_config_for_another_world_or_model_is_refused():
    checked, _ = load_ds_config(ROOT / "ds_configs/cpu_2.json")
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny")
    assert checked.problems_with(shape, 2) == []
    assert "written for 2 ranks, but 4 were launched" in checked.problems_with(shape, 4)[0]
    odd = shape.model_copy(update={"n_routed_experts": 7})
    assert "does not divide the model's 7 routed experts" in checked.problems_with(odd, 2)[0]


def test_a_repeated_key_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(UserError, match="'a' stands twice"):
        load_json(path)
    path = tmp_path / "x.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="'seed' stands twice"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.peak_lrr=1", "unknown key 'schedule.peak_lrr'; did you mean 'peak_lr'?"),
        ("schedule.peak_lr=fast", "'schedule.peak_lr' is 'fast'"),
        ("schedule.peak_lr", "--set takes key=value"),
        ("seed.x=1", "'seed' is not a section"),
        ("schedule.min_lr=1", "schedule.min_lr 1.0 exceeds schedule.peak_lr"),
    ],
)
def test_bad_overrides_are_refused(override, said):
    with pytest.raises(UserError) as caught:
        load_run_config(RUN_CONFIGS[0], [override])
    assert said in str(caught.value)


def test_overrides_take_numbers_as_people_write_them():
    assert load_run_config(RUN_CONFIGS[0], ["schedule.peak_lr=3e-3"]).schedule.peak_lr == 3e-3


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "is not valid"), ("[]", "must hold a mapping")]
)
def test_unreadable_files_are_named(content, said, tmp_path):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_run_config(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
