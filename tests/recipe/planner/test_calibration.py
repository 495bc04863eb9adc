"""A calibration file: what is refused, what it changes of a plan, and what it leaves."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from recipe.base.errors import UserError
from recipe.base.hardware import Accelerator, accelerator_named, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.strict import strict_model
from recipe.planner.calibration import WORDS, Calibration, Constants, load_calibration
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.search.search import on_paper
from recipe.planner.timing.timeline import RANGE, assumed_of
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
CONTENT = {
    "format": 2, "gpu": "h200", "device": "NVIDIA H200", "date": "2026-11-28", "commit": "0123456789abcdef", "dirty": False,
    "driver": None, "packages": {"torch": "2.11.0"}, "constants": {"matmul_efficiency": 0.8}, "steps": {},
}  # fmt: skip


def calibration(constants) -> Calibration:
    return strict_model(Calibration, CONTENT | {"constants": constants}, "test")


def cluster(gpus=64, constants=None):
    plain = cluster_of("h200", gpus, None)
    return plain if constants is None else calibration(constants).applied_to(plain)


def plan(of) -> Plan:
    ds = ds_config_for(SHAPE, of.gpus, stage=3, ep_size=8, micro_batch=2, accumulation=1)
    return Plan(Workload(SHAPE, of, parsed(ds), RunFacts()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gpu": "h100"}, "'device' is 'NVIDIA H200', which is no h100"),
        ({"gpu": "h300"}, "must be one of a100-40gb"),
        ({"device": "NVIDIA H200 MIG 1g.18gb"}, "which is no h200"),
        ({"format": 1}, "has format 1, and this version reads 2; write it anew from its result"),
        ({"date": "yesterday"}, "must be a date such as"),
        ({"constants": {}}, "'constants' is empty"),
        ({"constants": {"matmul_eficiency": 0.8}}, "unknown key 'constants.matmul_eficiency'; did you mean"),
        ({"constants": {"matmul_efficiency": 1.2}}, "'constants.matmul_efficiency' is 1.2: input should be less than or equal to 1"),
        ({"constants": {"launch_s": 0}}, "'constants.launch_s' is 0: input should be greater than 0"),
        ({"constants": {"attention_half": float("nan")}}, "must be a finite number"),
        ({"constants": {"grouped_gemm": True}}, "must be a number"),
        ({"steps": {"ours": 0.0}}, "'steps.ours' is 0.0"),
        ({"network": 1}, "unknown key 'network'"),
    ],
)  # fmt: skip
def test_another_file_is_refused_in_a_sentence(changes, sentence, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(CONTENT | changes))
    with pytest.raises(UserError) as refused:
        load_calibration(path)
    assert sentence in str(refused.value)
    assert str(path) in str(refused.value)


def test_constants_are_fields_of_an_accelerator_and_each_has_words():
    names = {field.name for field in fields(Accelerator)}
    assert Constants.model_fields.keys() == WORDS.keys()
    assert WORDS.keys() <= names


@pytest.mark.parametrize("content", [[], {}, {"device": "NVIDIA H200", "kernels": [], "format": 2}])
def test_what_is_no_calibration_file_is_refused_in_a_sentence(content, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"result.json is not a calibration file; give one that `make gpu` wrote"):
        load_calibration(path)


@pytest.mark.parametrize("name", WORDS)
def test_each_constant_reaches_the_plan(name):
    """Twice as slow or half as large, or for a share nine tenths, changes what is planned; the constants' own value does not."""
    own = getattr(accelerator_named("h200"), name)
    same, other = (plan(cluster(constants={name: own * factor})) for factor in (1.0, 0.5))
    before = plan(cluster())
    assert same.expected.step_s == before.expected.step_s
    assert (same.memory.peak_gib, same.usable_gib) == (before.memory.peak_gib, before.usable_gib)
    if name == "memory_gib":
        assert other.usable_gib == pytest.approx(before.usable_gib / 2)
    elif name == "launch_s":  # which bounds small micro-batches alone: enough of it does
        assert plan(cluster(constants={name: 1e-3})).expected.step_s > before.expected.step_s
    else:
        assert abs(other.expected.step_s / before.expected.step_s - 1) > 1e-4


def test_the_range_around_a_calibrated_plan_keeps_its_width():
    gpu = cluster(constants={"matmul_efficiency": 0.8, "run_efficiency": 0.46}).accelerator
    for before in RANGE:
        after = assumed_of(before, gpu)
        assert after.compute == pytest.approx(before.compute / 2)  # 0.46 for 0.92
        assert replace(after, compute=before.compute) == before  # one GPU measures none of the others


def test_without_a_calibration_the_range_is_around_what_is_assumed_of_the_gpu():
    assert [assumed_of(a, accelerator_named("a100-80gb")) for a in RANGE] == list(RANGE)
    assert [a.compute for a in RANGE] == [1.05, 0.92, 0.75 * 0.92]
    gpu = accelerator_named("h200")
    assert [assumed_of(a, gpu).compute for a in RANGE] == pytest.approx(
        [a.compute * gpu.run_efficiency / 0.92 for a in RANGE]
    )


def test_contenders_on_paper_run_on_the_same_gpu():
    def steps(constants):
        return [p.estimate.step_s for p in on_paper(SHAPE, cluster(constants=constants), RunFacts(), 128)]

    for name in ("matmul_efficiency", "grouped_gemm", "run_efficiency"):
        assert steps({name: 0.4}) > steps(None), name
