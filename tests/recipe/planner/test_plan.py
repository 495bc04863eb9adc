"""How much selective recompute may keep, and what would fit where a plan does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.base.hardware import GIB, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.communication import collectives
from recipe.planner.kept import EVERYTHING, KEEPABLE, kept_bytes, rows_of
from recipe.planner.plan import FILLED, KEPT_STEP_GIB, USABLE, Plan, with_kept
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT

MODELS = ROOT / "recipe/configs/models"


def plan_of(*, model: str = "30b-a3b", gpus: int = 256, ep: int = 8, micro_batch: int = 8, **facts) -> Plan:
    shape = load_model_shape(MODELS / model)
    ds = parsed(ds_config_for(shape, gpus, stage=3, ep_size=ep, micro_batch=micro_batch, accumulation=1))
    run = RunFacts(**{"recompute": "selective", **facts})
    return Plan(Workload(shape, cluster_of("a100-80gb", gpus, "400g"), ds, run))


def with_budget(plan: Plan, gib: float) -> Plan:
    return Plan(with_kept(plan.work, gib))


@pytest.mark.parametrize("options", [{}, {"ep": 1}, {"micro_batch": 6}, {"gpus": 64}], ids=str)
def test_the_budget_fills_memory_up_to_the_margin(options):
    plan = plan_of(**options)
    room = FILLED * plan.work.cluster.accelerator.memory_gib
    filled = with_budget(plan, plan.kept_gib_that_fills())
    assert filled.work.kept.layers
    assert filled.memory.peak_gib <= room
    assert filled.work.ds.recipe.kept_gib % KEPT_STEP_GIB == 0
    largest_layer = 3  # GiB of one result of one layer, below which a rest of the budget may stay empty
    assert filled.memory.peak_gib > room - largest_layer
    assert filled.kept_gib_that_fills() == filled.work.ds.recipe.kept_gib  # whatever the plan at hand keeps


def test_a_run_with_worse_balance_than_a_budget_counts_keeps_less():
    plan = plan_of(imbalance=2.0)
    gib = plan.kept_gib_that_fills()
    assert 0 < gib < plan_of().kept_gib_that_fills()
    assert with_budget(plan, gib).memory.peak_gib <= FILLED * plan.work.cluster.accelerator.memory_gib


def test_where_all_that_can_be_kept_fits_the_budget_holds_just_that():
    plan = plan_of(micro_batch=1)
    work, gib = plan.work, plan.kept_gib_that_fills()
    names = (*KEEPABLE, EVERYTHING)
    assert dict(with_kept(work, gib).kept.layers) == dict.fromkeys(names, 24)
    rows = rows_of(work.shape, tokens=work.tokens, ep_size=8, imbalance=1.25)
    kind = {"element": 2, "compiled": True}
    most = sum(kept_bytes(work.shape, name, rows, moe=n > 0, **kind) for name in names for n in range(24)) / GIB
    assert gib - KEPT_STEP_GIB < most <= gib


def test_nothing_is_kept_where_there_is_no_room():
    assert plan_of(micro_batch=32, gpus=64).kept_gib_that_fills() == 0.0
    assert FILLED < USABLE


def test_a_budget_that_is_too_large_is_told_with_the_one_that_fits():
    plan = with_budget(plan_of(), 60.0)
    (problem,) = plan.problems()
    fitting = plan.kept_gib_that_fills()
    assert problem.endswith(f"; set recipe.kept_gib {fitting:g}")
    assert with_budget(plan, fitting).problems() == []


def test_without_recompute_a_smaller_micro_batch_or_selective_recompute_fits():
    (problem,) = plan_of(recompute="none", micro_batch=4).problems()
    assert "set train_micro_batch_size_per_gpu 2 and gradient_accumulation_steps 2" in problem
    (problem,) = plan_of(recompute="none", micro_batch=1, seq_length=8192, model="100b-a10b", gpus=64).problems()
    assert "set compute.recompute to selective (--recompute selective)" in problem


def test_the_plan_as_json_has_what_is_kept_and_the_parts_of_an_exchange():
    plan = with_budget(plan_of(), 8.0)
    ds = plan.work.ds.model_copy(update={"recipe": plan.work.ds.recipe.model_copy(update={"exchange_parts": 2})})
    values = Plan(replace(plan.work, ds=ds)).as_dict()
    assert (values["kept_gib"], values["exchange_parts"]) == (8.0, 2)
    assert next(iter(values["kept_layers"])) == KEEPABLE[0]
    assert plan_of(recompute="non_reentrant").as_dict()["kept_layers"] == {}


@pytest.mark.parametrize(("model", "ep", "groups"), [("30b-a3b", 8, 23), ("100b-a10b", 8, 71), ("30b-a3b", 1, 69)])
def test_a_large_models_experts_have_a_gradient_norm_for_each_of_deepspeeds_groups(model, ep, groups):
    """At most 178,956,971 elements: three of 51.9M; two of 83.9M; of 415.2M each alone."""
    norms = [c for c in collectives(plan_of(model=model, ep=ep).work) if c.purpose == "gradient norm"]
    assert next(c.calls for c in norms if c.group.ranks == 256 // ep and c.calls != 3) == groups
