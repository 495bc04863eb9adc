"""The search, its reasons, and the targets of the design point."""

from __future__ import annotations

import pytest

from recipe.base.errors import UserError
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import Budget, Plan
from recipe.planner.search import shipped
from recipe.planner.search.search import on_paper, search, why_it_lost
from recipe.planner.timeline import CONSERVATIVE, EXPECTED
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")


def planned(name: str, interconnect: str | None = None) -> Plan:
    plan = shipped.plans()[name][1]
    if interconnect is None:
        return plan
    work = plan.work
    cluster = cluster_of(work.cluster.accelerator.name, work.ranks, interconnect)
    return Plan(Workload(work.shape, cluster, work.ds, work.run))


def test_the_design_point_keeps_its_promises():
    plan = planned("a100_256")
    assert plan.memory.peak_gib <= 72
    assert plan.expected.exposed_share <= 0.15
    assert plan.cost(CONSERVATIVE).days <= 25


def test_a_slower_network_is_dearer_and_still_works():
    slow, fast = planned("a100_256", "200g"), planned("a100_256")
    assert slow.expected.step_s > fast.expected.step_s
    assert slow.problems() == []


def test_a_thousand_gpus_cost_little_more_a_token():
    small, large = planned("a100_256"), planned("a100_1024")
    assert large.cost(EXPECTED).usd <= 1.15 * small.cost(EXPECTED).usd
    assert large.work.tokens == small.work.tokens
    assert large.work.ep == small.work.ep


def test_the_config_for_a_nic_per_gpu_is_there_because_it_is_faster_on_its_network_alone():
    own, other = planned("a100_256_8x200g"), planned("a100_256", "8x200g")
    assert own.expected.step_s < 0.9 * other.expected.step_s
    assert own.work.tokens_per_step == other.work.tokens_per_step
    assert planned("a100_256_8x200g", "400g").expected.step_s > planned("a100_256").expected.step_s


# A run moves between cluster sizes only within one ZeRO stage; this is the most that it may cost at one of them.
PRICE_OF_ONE_STAGE = 0.15


@pytest.mark.parametrize("config", shipped.SHIPPED, ids=lambda c: c.name)
def test_no_other_stage_would_be_much_faster_than_a_shipped_config(config):
    work = planned(config.name).work
    facts = RunFacts(work.run.seq_length)
    others = search(
        work.shape, work.cluster, facts, Budget(), config.sequences, stages=(1, 2), ep_sizes=(config.ep,)
    )  # fmt: skip
    dearer = PRICE_OF_ONE_STAGE if config.name == "a100_64" else 0.03
    assert not others[0].fits or others[0].step_s > (1 - dearer) * planned(config.name).expected.step_s


def ranked(gpus: int = 64, interconnect: str = "400g", **options):
    cluster = cluster_of("a100-80gb", gpus, interconnect)
    return search(SHAPE, cluster, RunFacts(), Budget(), options.pop("sequences", 16 * gpus), **options)


@pytest.fixture(scope="module")
def choices():
    """Within a node, across two, and none."""
    return ranked(ep_sizes=(1, 8, 16))


def test_what_fits_comes_first_the_fastest_first_and_every_loser_has_a_reason(choices):
    fits = [c.fits for c in choices]
    assert fits == sorted(fits, reverse=True)
    assert any(fits)
    assert not all(fits)
    steps = [c.step_s for c in choices[1:] if c.fits]
    assert choices[0].step_s < 1.01 * steps[0]
    assert steps == sorted(steps)
    for loser in choices[1:]:
        reason = why_it_lost(loser, choices[0])
        assert reason.startswith(("+", "equal") if loser.fits else "out of memory"), reason


def test_reasons_name_what_is_wrong(choices):
    reasons = {c.name: why_it_lost(c, choices[0]) for c in choices}
    assert "crosses nodes" in reasons["ZeRO-3, EP 16, 16 x 1, recompute"]
    assert "in each of 16 micro-batches" in reasons["ZeRO-3, EP 8, 1 x 16, recompute"]
    assert reasons["ZeRO-2, EP 1, 16 x 1, no recompute"].startswith("out of memory")
    assert "modules wait for" in reasons["ZeRO-3, EP 8, 16 x 1, recompute, 0 layers prefetched"]


def test_a_search_can_be_narrowed():
    narrowed = ranked(stages=(3,), ep_sizes=(8,), recomputes=("non_reentrant",))
    assert {(c.plan.work.ds.zero_optimization.stage, c.plan.work.ep) for c in narrowed} == {(3, 8)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"sequences": 100}, "give a multiple of"), ({"ep_sizes": (5,)}, "96 routed experts and 64 GPUs")],
)
def test_a_search_that_cannot_begin_says_what_to_change(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ranked(**options)


def test_tensor_and_pipeline_parallelism_are_near_on_paper_and_fit():
    cluster = cluster_of("a100-80gb", 256, "400g")
    paper = on_paper(SHAPE, cluster, RunFacts(), 2048)
    assert all(p.peak_gib < 0.91 * cluster.accelerator.memory_gib for p in paper)
    by_degree = {(p.strategy.tp, p.strategy.pp, p.strategy.recompute): p.estimate.step_s for p in paper}
    assert by_degree[8, 1, "none"] > by_degree[2, 1, "none"]  # a thinner matmul and more to exchange
    assert by_degree[1, 4, "full"] > by_degree[1, 4, "none"]
    assert 0.8 < paper[0].estimate.step_s / planned("a100_256").expected.step_s < 1.0


def test_more_pipeline_stages_hold_less_weight_and_wait_longer():
    cluster = cluster_of("a100-80gb", 256, "8x200g")
    found = {
        p.strategy.pp: p
        for p in on_paper(SHAPE, cluster, RunFacts(), 2048)
        if (p.strategy.tp, p.strategy.recompute) == (1, "none")
    }
    assert found[8].peak_gib < found[2].peak_gib
    assert found[8].estimate.bubble_s > found[2].estimate.bubble_s
