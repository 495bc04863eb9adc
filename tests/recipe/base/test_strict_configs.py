"""Run configs and ds_configs are read strictly: any wrong key or value is named before anything starts."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import itertools
import json
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from data_prep.decontaminate import DecontaminateConfig
from data_prep.dedup import DedupConfig
from data_prep.tokenize_corpus import TokenizeConfig
from data_prep.train_tokenizer import TokenizerConfig
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
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.settings import RunConfig, load_run_config
from recipe.base.strict import load_json, strict_model
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
            yield from keys_of(inner, (*prefix, name, *first_of(field.annotation)))


def first_of(annotation: Any) -> tuple[str, ...]:
    """The key of the first section of a list of them."""
    return ("0",) if get_origin(annotation) is list else ()


def misspelt(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """A copy with the last key of `path` misspelt, its section made if need be."""
    values = copy.deepcopy(values)
    section: Any = values
    for name, following in itertools.pairwise(path):
        if isinstance(section, list):
            section = section[0]
            continue
        if not isinstance(section.get(name), dict | list):
            section[name] = [{}] if following == "0" else {}
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
    assert {key for key in top if f'"{key}"' not in read and f"'{key}'" not in read} == {"recipe"}  # ours


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


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_ds_configs_that_cannot_work_are_refused(changes, message, tmp_path):
    assert message in ds_problems(tmp_path, **changes)


def test_all_problems_are_reported_at_once(tmp_path):
    message = ds_problems(
        tmp_path, gradient_clippin=1.0, optimizer={}, train_batch_size="auto", expert_parallel__autoep_siz=2
    )
    for part in ("gradient_clippin", "optimizer", "'train_batch_size' is \"auto\"", "autoep_siz"):
        assert part in message


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
    ("override", "message"),
    [
        ("schedule.peak_lrr=1", "unknown key 'schedule.peak_lrr'; did you mean 'peak_lr'?"),
        ("peak_lr=1", "unknown key 'peak_lr'; did you mean 'schedule.peak_lr'?"),
        ("schedule.mixture=1", "unknown key 'schedule.mixture'; did you mean 'data.mixture'?"),
        ("tokens=1", "unknown key 'tokens'; did you mean 'data.tokens' or 'evaluation.tokens'?"),
        (
            "watch.probe_every_steps=3",
            "'watch.probe_every_steps' is called 'corruption_check_every_steps' now; rename it",
        ),
        ("schedule.peak_lr=fast", "'schedule.peak_lr' is 'fast'"),
        ("schedule.peak_lr", "--set takes key=value"),
        ("seed.x=1", "'seed' is not a section"),
        ("schedule.min_lr=1", "schedule.min_lr 1.0 exceeds schedule.peak_lr"),
    ],
)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(UserError) as caught:
        load_run_config(RUN_CONFIGS[0], [override])
    assert message in str(caught.value)


def test_overrides_take_numbers_as_people_write_them():
    assert load_run_config(RUN_CONFIGS[0], ["schedule.peak_lr=3e-3"]).schedule.peak_lr == 3e-3


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "is not valid"), ("[]", "must hold a mapping")]
)
def test_unreadable_files_are_named(content, message, tmp_path):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_run_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def fields_of(model: type[BaseModel], prefix: str = ""):
    """Name and annotation of every value, not section, that a settings model knows."""
    from recipe.base.strict import _inner_model

    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is None:
            yield f"{prefix}{name}", field.annotation
        else:
            yield from fields_of(inner, ".".join([f"{prefix}{name}", *first_of(field.annotation), ""]))


def nested(name: str, value: Any) -> dict[str, Any]:
    *sections, last = name.split(".")
    values = {last: value}
    for section in reversed(sections):
        values = [values] if section == "0" else {section: values}
    return values


SCHEMAS = (RunConfig, DsConfig, ModelShape, DecontaminateConfig, DedupConfig, TokenizeConfig, TokenizerConfig)


def problems_of(model: type[BaseModel], name: str, value: Any) -> list[str]:
    """What is said of one value; that other keys are missing does not matter."""
    with pytest.raises(ConfigError) as caught:
        strict_model(model, nested(name, value), "x")
    return [problem for problem in caught.value.problems if f"'{name}'" in problem]


def named(kinds: set[type]) -> list[Any]:
    """Every value of all schemas that may be of one of these kinds, and of none that lets through more."""
    return [
        pytest.param(model, name, id=f"{model.__name__}.{name}")
        for model in SCHEMAS
        for name, annotation in fields_of(model)
        if {annotation, *get_args(annotation)} - {type(None), Union, UnionType} <= kinds
    ]


@pytest.mark.parametrize(("model", "name"), named({int, float}))
def test_no_number_is_a_boolean_or_without_bounds(model, name):
    for value in (True, False, float("inf"), float("-inf"), float("nan"), "inf", "-Infinity", "nan", "1e400", 10**400):
        (problem,) = problems_of(model, name, value)
        assert "number" in problem
        assert len(problem) < 300


@pytest.mark.parametrize(("model", "name"), named({bool}))
def test_no_boolean_is_a_number_or_text(model, name):
    for value in (1, 0, 1.0, "yes", "true"):
        (problem,) = problems_of(model, name, value)
        assert problem.endswith("must be true or false")


@pytest.mark.parametrize(("model", "name"), named({Path, str}))
def test_text_is_text_that_a_path_can_have(model, name):
    for value in (False, 2024, 1.5, datetime.date(2024, 1, 1)):
        (problem,) = problems_of(model, name, value)
        assert "put it in quotes" in problem
    for value in ("a\0b", "a\ud800"):
        assert problems_of(model, name, value)


@pytest.mark.parametrize(("model", "name"), named({Path}))
def test_a_path_has_names_that_a_file_system_holds(model, name):
    for value in ("", "/a/" + "中" * 86):
        assert problems_of(model, name, value)


def test_whole_numbers_may_be_written_as_people_write_large_ones():
    run = load_run_config(
        RUN_CONFIGS[0],
        [
            "schedule.total_tokens=1e12",
            "schedule.peak_lr=.5e-3",
            "seed=-1",
            "optimizer.eps=0.1",
            "schedule.warmup_tokens=1_000",
        ],
    )
    assert (run.schedule.total_tokens, run.schedule.peak_lr, run.seed) == (10**12, 5e-4, -1)
    assert (run.optimizer.eps, run.schedule.warmup_tokens) == (0.1, 1000)
    # As a tool writes it that reads YAML 1.1, for which 1e-3 is text.
    assert load_run_config(RUN_CONFIGS[0], ["schedule.peak_lr='1e-3'"]).schedule.peak_lr == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mixture.weights={en: 1, no: 1}", "has the key False"),
        ("data.mixture.factors={on: 1}", "has the key True"),
        ("data.mixture.tiers={1: 1}", "has the key 1, which is read as int"),
        ("data.mixture={no: 1}", "'data.mixture' has the key False"),
    ],
)
def test_keys_that_yaml_takes_for_something_else_are_to_be_quoted(override, message):
    with pytest.raises(ConfigError) as caught:
        load_run_config(RUN_CONFIGS[0], [override])
    (problem,) = caught.value.problems
    assert message in problem
    assert "in quotes" in problem


def test_quoted_keys_and_tiers_of_json_are_read():
    quoted = load_run_config(RUN_CONFIGS[0], ["data.mixture.weights={en: 1, 'no': 1}"])
    assert quoted.data.mixture.weights == {"en": 1, "no": 1}
    values = {**yaml.safe_load(RUN_CONFIGS[0].read_text()), **nested("data.mixture.anneal.tier_weights", {})}
    values["data"] = {
        "tokens": "x",
        "seq_length": 8,
        "mixture": {"anneal": {"share": 0.1, "tier_weights": {"1": 2}}, "tiers": {"en": 1}},
    }
    assert strict_model(RunConfig, values, "x").data.mixture.anneal.tier_weights == {1: 2}


def test_all_kinds_of_problems_come_together():
    overrides = [
        "checkpoint.every_steps=yes",
        "seed=no",
        "schedule.peak_lr=.inf",
        "optimizer.betas=[1, .nan]",
        "evaluation=[]",
        "sede=1",
    ]
    with pytest.raises(ConfigError) as caught:
        load_run_config(RUN_CONFIGS[0], overrides)
    problems = "\n".join(caught.value.problems)
    for part in ("'checkpoint.every_steps' is True", "'seed' is False", "'schedule.peak_lr' is inf", "'optimizer.betas.0' is 1",
                 "'optimizer.betas.1' is nan", "'evaluation' is []: must hold a mapping", "unknown key 'sede'"):  # fmt: skip
        assert part in problems
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize("betas", ["[2, 0.95]", "[-0.1, 0.95]", "[0.9, 1]", "[0.9]", "[0.9, 0.95, 0.99]", "0.9"])
def test_betas_are_two_numbers_below_one(betas):
    with pytest.raises(ConfigError, match=r"optimizer\.betas"):
        load_run_config(RUN_CONFIGS[0], [f"optimizer.betas={betas}"])


NOT_YAML = [
    "[1", "{a: 1, a: 2}", "!!python/object:os.system x", "*x", "&a [*a]", "\t1", "!!int x", "!!bool x", "!!timestamp x", "{<<: 1}",
    "2024-13-45", "{[1]: 2}", "'", "%", "@", "!!binary x", "!!omap [a]", "a: b: c", "[" * 5000, "9" * 5000, "1:30", "1:30.5", "010", "-0_7", "!!float [1]", "!!int {a: 1}",
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_YAML, ids=lambda value: value[:12])
def test_a_value_that_is_no_yaml_names_its_override(value):
    with pytest.raises(UserError) as caught:
        load_run_config(RUN_CONFIGS[0], [f"schedule.peak_lr={value}"])
    assert str(caught.value).startswith(f"--set schedule.peak_lr={value}: the value ")
    assert "\n" not in str(caught.value).removeprefix(f"--set schedule.peak_lr={value}")


@pytest.mark.parametrize("value", NOT_YAML, ids=lambda value: value[:12])
def test_a_file_that_is_no_yaml_is_named(value, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: {value}")
    with pytest.raises(UserError, match="is not valid"):
        load_run_config(path)


@pytest.mark.parametrize("override", ["=1", "seed", ".seed=1", "schedule..peak_lr=1", "schedule.=1", ""])
def test_an_override_without_a_key_is_refused(override):
    with pytest.raises(UserError, match="--set takes key=value"):
        load_run_config(RUN_CONFIGS[0], [override])


def test_an_override_makes_a_section_that_is_missing_or_null(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN_CONFIGS[0].read_text() + "\nnumerics:\n")
    run = load_run_config(path, ["numerics.spikes.sigmas=7", "watch.start_s=9000"])
    assert (run.numerics.spikes.sigmas, run.watch.start_s) == (7, 9000)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b'{"a": ' * 5000, b'{"a": 1, "a": 2}', b"[" * 200_000, b"\xef\xbb\xbf{}", b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["bytes", "objects", "repeated", "lists", "mark", "digits"],
)  # fmt: skip
def test_json_that_cannot_be_read_is_named(content, tmp_path):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        load_ds_config(path)


@pytest.mark.parametrize("key", ["unknown", "fp16", "zero_optimization", "gradient_clipping"])
def test_json_that_is_nested_deeply_is_refused_where_it_stands(key, tmp_path):
    values = load_json(ROOT / "ds_configs/cpu_2.json")
    deep = {"a": 1}
    for _ in range(700):
        deep = {"a": deep}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**values, key: deep}))
    with pytest.raises(UserError) as caught:
        load_ds_config(path)
    assert key in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_nan_and_infinity_of_json_are_no_numbers(tmp_path):
    assert "'gradient_clipping' is nan" in ds_problems(tmp_path, gradient_clipping=float("nan"))
    assert "'gradient_clipping' is inf" in ds_problems(tmp_path, gradient_clipping=float("inf"))


# By hand, so that an entry that goes missing is missed.
REFUSED_BY_HAND = {
    "optimizer": "belongs to the run config (optimizer:)",
    "scheduler": "belongs to the run config (schedule:)",
    "tensorboard": "the recipe writes TensorBoard logs",
    "fp16": "use bf16",
    "amp": "use bf16",
    "zero_allow_untested_optimizer": "is not needed",
    "pipeline": "over data and experts",
    "tensor_parallel": "over data and experts",
    "sequence_parallel_size": "is refused by DeepSpeed",
    "zero_optimization.zero_hpz_partition_size": "is refused by DeepSpeed",
    "zero_optimization.zero_quantized_gradients": "is refused by DeepSpeed",
    "zero_optimization.offload_optimizer": "the optimizer runs where the parameters are",
    "zero_optimization.offload_param": "the optimizer runs where the parameters are",
    "expert_parallel.expert_tensor_parallel_size": "is refused by DeepSpeed",
    "expert_parallel.combine_impl": "has no effect",
    "expert_parallel.load_balance_coeff": "balance belongs to the run config",
}


@pytest.mark.parametrize(("key", "reason"), REFUSED_BY_HAND.items(), ids=REFUSED_BY_HAND)
def test_each_key_with_another_owner_is_refused_with_its_reason(key, reason, tmp_path):
    message = ds_problems(tmp_path, **{key.replace(".", "__"): 1})
    assert f"'{key}' {REFUSED_KEYS[key]}" in message
    assert reason in REFUSED_KEYS[key]
    assert "unknown key" not in message
    assert set(REFUSED_BY_HAND) == set(REFUSED_KEYS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.total_tokens=1000", "schedule.warmup_tokens=1001"], "exceed schedule.total_tokens"),
        (["schedule={total_tokens: 1000, kind: wsd, peak_lr: 1, min_lr: 0, warmup_tokens: 600, decay_tokens: 401}"],
         "warmup_tokens + decay_tokens exceed"),
        (["schedule={total_tokens: 1000, kind: wsd, peak_lr: 1, min_lr: 0, warmup_tokens: 0}"], "needs schedule.decay_tokens"),
        (["schedule={total_tokens: 1000, peak_lr: 1, min_lr: 0, warmup_tokens: 0, decay_tokens: 1}"], "is for kind wsd"),
        (["data.mixture.tiers={en: 3}", "data.mixture.anneal={share: 0.1, tier_weights: {1: 2}}"], "names tier 3"),
        (["data.mixture.anneal={share: 0.1, tier_weights: {1: -2}}"], "tier_weights: 1 has a negative weight"),
        (["data.mixture.weights={en: 1, zh: -1}"], "data.mixture.weights: zh has a negative weight"),
        (["data.mixture.weights={en: 0, zh: 0}"], "data.mixture.weights are all zero"),
        (["data.mixture.weights={}"], "data.mixture.weights are all zero"),
        (["data.mixture.factors={en: -0.5}"], "data.mixture.factors: en has a negative weight"),
        (["data.mixture.weights={en: 1}", "data.mixture.factors={en: 1}"], "overrides factors"),
        (["compute.recompute=selective", "compute.attention=flex_attention"], "cannot keep the result of flex_attention"),
        (["checkpoint.every_steps=10", "checkpoint.keep_every_steps=25"], "set a multiple such as 20"),
        (["checkpoint.every_steps=10", "checkpoint.keep_every_steps=3"], "set a multiple such as 10"),
        (["watch.heartbeat_s=900"], "watch.heartbeat_s 900 is not below watch.no_progress_s 900"),
        (["watch.heartbeat_s=20", "watch.start_s=20"], "watch.heartbeat_s 20 is not below watch.start_s 20"),
        (["routing.aux_loss_coef=0"], "routing.aux_loss_coef is 0"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_run_config(RUN_CONFIGS[0], overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule={total_tokens: 1000, peak_lr: 1, min_lr: 1, warmup_tokens: 1000}"],
        ["schedule={total_tokens: 1000, kind: wsd, peak_lr: 1, min_lr: 0, warmup_tokens: 600, decay_tokens: 400}"],
        ["checkpoint.every_steps=10", "checkpoint.keep_every_steps=10"],
        ["checkpoint.every_steps=10", "checkpoint.keep_every_steps=5"],  # all of them
        ["watch.no_progress_s=7200"],
        ["data.mixture.weights={en: 1, zh: 0}"],
    ],
)
def test_settings_at_their_limits_are_read(overrides):
    load_run_config(RUN_CONFIGS[0], overrides)


def test_zero_stage_and_expert_switch_are_no_other_kind(tmp_path):
    for stage in (True, 1.0):
        assert f"'zero_optimization.stage' is {stage}: must be" in ds_problems(tmp_path, zero_optimization__stage=stage)
    assert "'expert_parallel.enabled' is 1" in ds_problems(tmp_path, expert_parallel__enabled=1)
