"""Memory terms against the engine's tensors and autograd's; the sum against what GPUs have."""

from __future__ import annotations

import json

import pytest

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.planner.memory import plan_memory, saved_bytes_per_token
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT, launch

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")


def work(
    recompute: str = "non_reentrant", micro_batch: int = 8, gpus: int = 256, shape: ModelShape = SHAPE,
    compiled: bool = True, **options,
):  # fmt: skip
    choice = {"stage": 3, "ep_size": 8, "accumulation": 1} | options
    ds = parsed(ds_config_for(shape, gpus, micro_batch=micro_batch, **choice))
    return Workload(shape, cluster_of("a100-80gb", gpus, "400g"), ds, RunFacts(recompute=recompute, compile=compiled))


@pytest.mark.distributed
@pytest.mark.parametrize("compiled", [False, True])
def test_saved_activations_are_what_autograd_keeps(compiled):
    worker = ROOT / "tests/recipe/planner/saved_worker.py"
    done = launch(1, worker, *(["--compiled"] if compiled else []), env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout.splitlines()[-1])
    shape = ModelShape(**saved["shape"])
    planned = work(micro_batch=4, gpus=16, shape=shape, stage=2, compiled=compiled)
    # Without a GPU, AutoEP's activation is not a kernel and keeps its result too.
    activation = {"dense": 0, "moe": 2 * shape.num_experts_per_tok * shape.moe_intermediate_size}
    for kind, moe in (("dense", False), ("moe", True)):
        expected = sum(saved_bytes_per_token(planned, moe=moe).values()) + activation[kind]
        assert expected == pytest.approx(saved[kind], rel=0.02), kind


def total(planned: Workload, imbalance: float = 1.0) -> float:
    return plan_memory(planned, imbalance).peak_gib


def test_memory_grows_with_what_it_should_grow_with():
    assert total(work(micro_batch=16)) > 1.5 * total(work(micro_batch=8))
    assert total(work("none")) > 3 * total(work())
    assert total(work(), imbalance=2.0) > 1.1 * total(work())
    assert total(work(stage=2)) > total(work()) + 8


def test_without_recompute_activations_are_the_peak_and_with_it_one_layer_is():
    whole = plan_memory(work("none"), 1.0).at("backward of the last MoE layer")
    layers = {k: v for k, v in whole.items() if k.startswith("saved: ")}
    assert sum(layers.values()) > 0.8 * sum(whole.values())
    at_peak = plan_memory(work(), 1.0).at("backward of the last MoE layer")
    recomputed = {k.replace("recomputed", "saved"): v for k, v in at_peak.items() if k.startswith("recomputed: ")}
    assert recomputed["saved: routed experts"] == pytest.approx(layers["saved: routed experts"] / 47)
    assert at_peak["layer inputs"] == pytest.approx(48 * 8 * 4096 * 2048 * 2 / 2**30)


def test_what_does_not_fit_is_refused_with_a_micro_batch_that_does():
    (sentence,) = Plan(work("none", micro_batch=8)).problems()
    assert "GiB" in sentence
    assert "set train_micro_batch_size_per_gpu 2 and gradient_accumulation_steps 4" in sentence
    assert Plan(work("none", micro_batch=2, accumulation=4)).problems() == []


def test_where_no_micro_batch_helps_the_sentence_says_what_else():
    (sentence,) = Plan(work("none", micro_batch=1, gpus=8)).problems()
    assert "compute.recompute" in sentence
