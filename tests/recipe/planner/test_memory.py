"""Memory terms against the engine's tensors and autograd's; the sum against what GPUs have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from recipe.base.hardware import GIB, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.planner.kept import EVERYTHING, FILL_IMBALANCE, KEEPABLE, kept_bytes, rows_of
from recipe.planner.memory import plan_memory, saved_bytes_per_token
from recipe.planner.plan import Plan
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT, launch

BACKWARD = "backward of the last MoE layer"
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
    planned = work(micro_batch=saved["micro_batch"], gpus=16, shape=shape, compiled=compiled)
    planned = replace(planned, run=replace(planned.run, seq_length=saved["seq_length"]))
    for kind, moe in (("dense", False), ("moe", True)):
        expected = saved_bytes_per_token(planned, moe=moe)
        if moe:  # of which autograd itself keeps the experts' numbers; test_engine_agrees.py has the rest
            expected["routing plan"] = 8 * shape.num_experts_per_tok
        assert sum(expected.values()) == pytest.approx(saved[kind], rel=0.01), kind


def total(planned: Workload, imbalance: float = 1.0) -> float:
    return plan_memory(planned, imbalance).peak_gib


def test_memory_grows_with_what_it_should_grow_with():
    assert total(work(micro_batch=16)) > 1.5 * total(work(micro_batch=8))
    assert total(work("none")) > 3 * total(work())
    assert total(work(), imbalance=2.0) > 1.1 * total(work())
    assert total(work(stage=2)) > total(work()) + 7


def test_without_recompute_activations_are_the_peak_and_with_it_one_layer_is():
    whole = plan_memory(work("none"), 1.0).at(BACKWARD)
    layers = {k: v for k, v in whole.items() if k.startswith("saved: ")}
    assert sum(layers.values()) > 0.8 * sum(whole.values())
    at_peak = plan_memory(work(), 1.0).at(BACKWARD)
    recomputed = {k.replace("recomputed", "saved"): v for k, v in at_peak.items() if k.startswith("recomputed: ")}
    assert recomputed["saved: routed experts"] == pytest.approx(layers["saved: routed experts"] / 23)
    assert at_peak["layer inputs"] == pytest.approx(24 * 8 * 4096 * 3072 * 2 / 2**30)


def with_recipe(planned: Workload, **changes) -> Workload:
    return replace(planned, ds=planned.ds.model_copy(update={"recipe": planned.ds.recipe.model_copy(update=changes)}))


def test_kept_results_are_held_from_the_forward_to_the_backward_pass_and_taken_from_the_layer_that_runs():
    nothing, everything = (with_recipe(work("selective"), kept_gib=gib) for gib in (0.0, 1000.0))
    assert total(nothing) == total(work("non_reentrant"))
    plan = plan_memory(everything, 1.0)
    kept = {moment: plan.at(moment)["kept results"] for moment in (BACKWARD, "loss")}
    rows, last = rows_of(SHAPE, tokens=everything.tokens, ep_size=8), 0.0
    for name in (*KEEPABLE, EVERYTHING):
        last += kept_bytes(SHAPE, name, rows, moe=True, element=2, compiled=True) / GIB
    assert kept["loss"] - kept[BACKWARD] == pytest.approx(last)
    busier = plan_memory(everything, 1.25).at("loss")["kept results"]
    row = 2 * SHAPE.hidden_size + 3 * 2 * SHAPE.moe_intermediate_size + 4
    routed = everything.tokens * SHAPE.num_experts_per_tok * row * SHAPE.num_moe_layers / GIB
    assert busier - kept["loss"] == pytest.approx(0.25 * routed, rel=1e-3)  # padding is the same


def test_whole_layers_hold_what_they_do_where_nothing_is_recomputed():
    selective, none = (plan_memory(one, 1.3) for one in (with_recipe(work("selective"), kept_gib=1000.0), work("none")))
    saved = sum(size for name, size in none.at("loss").items() if name.startswith("saved: "))
    held = selective.at("loss")
    assert held["layer inputs"] + held["kept results"] + held["routing plans"] == pytest.approx(saved)
    assert none.peak_gib <= selective.peak_gib < none.peak_gib + 0.2  # the input of the layer that runs


def test_a_budget_for_early_training_is_not_exceeded_at_the_imbalance_that_it_has_room_for():
    planned = with_recipe(work("selective"), kept_gib=20.0)
    assert 19.0 < plan_memory(planned, FILL_IMBALANCE).at("loss")["kept results"] <= 20.0


def test_a_rank_with_all_experts_exchanges_nothing_and_knows_no_imbalance():
    planned = work(ep_size=1)
    assert total(planned, imbalance=1.5) == total(planned)
    assert "all-to-all buffers" not in plan_memory(planned, 1.0).at(BACKWARD)


def test_the_routing_plans_of_the_first_pass_are_held_but_where_torch_runs_all_of_a_layer_again():
    held = {
        r: plan_memory(work(r), 1.0).at("loss").get("routing plans", 0.0)
        for r in ("non_reentrant", "selective", "reentrant")
    }
    assert held["non_reentrant"] == held["selective"] > 0
    assert held["reentrant"] == 0


def test_parts_of_an_exchange_hold_another_weight_gradient_and_fewer_gradients_of_rows():
    whole, halves = (plan_memory(with_recipe(work(), exchange_parts=parts), 1.0).at(BACKWARD) for parts in (1, 2))
    matrix = SHAPE.n_routed_experts // 8 * SHAPE.hidden_size * SHAPE.moe_intermediate_size * 2 / GIB
    assert halves["gradients in flight"] - whole["gradients in flight"] == pytest.approx(matrix)
    assert halves["gradients of routed rows"] == pytest.approx(whole["gradients of routed rows"] / 2, rel=1e-3)
    assert halves["all-to-all buffers"] == pytest.approx(whole["all-to-all buffers"], rel=1e-3)


def test_what_does_not_fit_is_refused_with_a_micro_batch_that_does():
    (sentence,) = Plan(work("none", micro_batch=8)).problems()
    assert "GiB" in sentence
    assert "set train_micro_batch_size_per_gpu 2 and gradient_accumulation_steps 4" in sentence
    assert Plan(work("none", micro_batch=2, accumulation=4)).problems() == []


def test_where_no_micro_batch_helps_the_sentence_says_what_else():
    (sentence,) = Plan(work("none", micro_batch=1, gpus=8)).problems()
    assert "compute.recompute" in sentence
    assert "use more GPUs" in sentence  # recompute lowers no optimizer step, which is the peak
    (sentence,) = Plan(work("none", micro_batch=1, gpus=16, stage=1)).problems()
    assert "set compute.recompute to selective" in sentence
    assert Plan(work(micro_batch=1, gpus=16, stage=1)).problems() == []
