"""A run planned by its phases: the shipped run configs with each ds_config of their model, and what does not fit."""

from __future__ import annotations

import pytest

from recipe.base.ds_config import load_ds_config
from recipe.base.errors import UserError
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import RunConfig, load_run_config
from recipe.base.strict import load_json
from recipe.planner.phases import PhasePlan, phase_named, plan_phases, problems_of, total_cost
from recipe.planner.plan import Plan
from recipe.planner.search import shipped
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import Workload, facts_of
from tests.conftest import ROOT

RUNS = {name: ROOT / f"recipe/configs/runs/{name}.yaml" for name in ("pretrain_30b", "pretrain_100b")}
PAIRS = [
    pytest.param(name, s, id=f"{name}-{s.name}")
    for name, path in RUNS.items()
    for s in shipped.SHIPPED
    if s.model == load_run_config(path).model.name
]


def planned(
    run: RunConfig, config: shipped.Shipped, *, gpu: str | None = None, shape: ModelShape | None = None,
    imbalance: float | None = None,
) -> tuple[PhasePlan, ...]:  # fmt: skip
    ds, ds_raw = load_ds_config(config.path)
    phases = resolve_phases(run, shape or load_model_shape(shipped.MODELS / config.model), ds, ds_raw)
    return plan_phases(phases, cluster_of(gpu or config.gpu, config.gpus, config.interconnect), imbalance=imbalance)


def changed(run: RunConfig, number: int, **changes) -> RunConfig:
    phases = list(run.phases)
    phases[number] = phases[number].model_copy(update=changes)
    return run.model_copy(update={"phases": phases})


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_each_phase_of_a_shipped_run_fits_each_ds_config_of_its_model(name, config):
    run = load_run_config(RUNS[name])
    plans = planned(run, config)
    assert problems_of(plans) == []
    assert [p.phase.name for p in plans] == [phase.name for phase in run.phases]
    assert sum(p.tokens for p in plans) == run.schedule.total_tokens
    batches = [p.phase.tokens_per_step for p in plans]
    assert batches == sorted(batches)
    stable = next(p for p in plans if p.phase.name == "stable")
    assert stable.phase.ds_raw["train_batch_size"] == stable.phase.ds.train_batch_size == config.sequences
    for p in plans:
        if p.phase.run.data.seq_length > 4096:
            assert p.phase.ds.train_micro_batch_size_per_gpu == 1
            assert p.phase.shape.max_position_embeddings == p.phase.run.data.seq_length
            assert p.phase.run.data.document_attention


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_the_first_phase_has_room_for_the_imbalance_of_fresh_routers(name, config):
    measured = max(load_json(ROOT / "benchmarks/results/balance_trained.json")["sign"]["max_of_ranks"])
    first, *_ = planned(load_run_config(RUNS[name]), config, imbalance=measured)
    assert first.plan.memory.imbalance == measured > 1.25  # which the other phases are planned with
    assert first.plan.fits


@pytest.mark.parametrize("name", RUNS)
def test_a_shipped_runs_decay_begins_where_its_schedule_has_it_and_ends_at_the_lowest_rate(name):
    run = load_run_config(RUNS[name])
    with_own_rate = [phase for phase in run.phases if phase.learning_rate is not None]
    assert sum(phase.tokens for phase in with_own_rate) == run.schedule.decay_tokens
    assert [phase.learning_rate.to for phase in with_own_rate if phase.learning_rate.to is not None][
        -1
    ] == run.schedule.min_lr
    assert run.schedule.warmup_tokens < run.phases[0].tokens


def test_a_phase_that_does_not_fit_says_which_of_its_keys_to_set_and_with_them_it_fits():
    run, config = load_run_config(RUNS["pretrain_30b"]), shipped.named("a100_256")
    wrong = changed(run, 4, kept_gib=60.0)
    (problem,) = problems_of(planned(wrong, config))
    assert problem.startswith("phases.4 (long_32k): needs ")
    gib = float(problem.partition("set phases.4.kept_gib ")[2])
    assert problems_of(planned(changed(wrong, 4, kept_gib=gib), config)) == []


def test_all_phases_that_do_not_fit_are_told_at_once():
    run, config = load_run_config(RUNS["pretrain_30b"]), shipped.named("a100_256")
    problems = problems_of(planned(run, config, gpu="a100-40gb"))
    assert [problem.partition(" ")[0] for problem in problems] == [f"phases.{n}" for n in range(6)]


def test_a_problem_that_all_phases_share_is_told_once():
    shape = load_model_shape(shipped.MODELS / "30b-a3b").model_copy(update={"n_routed_experts": 90})
    plans = planned(load_run_config(RUNS["pretrain_30b"]), shipped.named("a100_256"), shape=shape)
    (problem,) = problems_of(plans)
    assert "90" in problem
    assert "phases." not in problem


def test_a_run_without_phases_is_planned_as_its_one():
    run, config = load_run_config(ROOT / "recipe/configs/runs/continue.yaml"), shipped.named("a100_256")
    (one,) = planned(run, config)
    ds, _ = load_ds_config(config.path)
    alone = Plan(Workload(one.phase.shape, cluster_of("a100-80gb", 256, "400g"), ds, facts_of(run)))
    assert one.plan.memory == alone.memory
    assert one.plan.expected.step_s == alone.expected.step_s
    assert one.tokens == one.plan.budget.tokens == run.schedule.total_tokens
    assert problems_of(planned(run, config, gpu="a100-40gb"))[0].startswith("needs ")


def test_costs_add_up_and_a_batch_below_the_ds_configs_costs_more_for_its_tokens():
    plans = planned(load_run_config(RUNS["pretrain_30b"]), shipped.named("a100_256"))
    costs = {p.phase.name: p.plan.cost(EXPECTED) for p in plans}
    assert total_cost(plans).usd == pytest.approx(sum(cost.usd for cost in costs.values()))
    of_token = {p.phase.name: costs[p.phase.name].usd / p.tokens for p in plans}
    assert of_token["ramp_4m"] > 1.1 * of_token["stable"] == pytest.approx(1.1 * of_token["ramp_8m"])
    assert of_token["long_64k"] > of_token["long_32k"] > 1.3 * of_token["stable"]


def test_a_phase_that_does_not_exist_is_told_beside_those_that_do():
    phases = [p.phase for p in planned(load_run_config(RUNS["pretrain_30b"]), shipped.named("a100_64"))]
    assert phase_named("decay", phases).number == 3
    with pytest.raises(UserError, match="--phase anneal is none of the run config's: ramp_4m, ramp_8m, stable, decay"):
        phase_named("anneal", phases)
