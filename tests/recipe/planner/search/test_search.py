"""The search, its reasons, and the targets of the design point."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from recipe.base.errors import UserError
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import FILLED, Budget, Plan, on_half_the_network
from recipe.planner.search import search as searching
from recipe.planner.search import shipped
from recipe.planner.search.ds_writer import NO_LIMIT, parsed
from recipe.planner.search.search import (
    EQUAL,
    EXCHANGE_PARTS,
    PREFETCH_LAYERS,
    SEARCHED_RECOMPUTES,
    Choice,
    on_paper,
    planned_choice,
    search,
    why_it_lost,
)
from recipe.planner.tables.report import describe_search
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT

SMALL = load_model_shape(ROOT / "recipe/configs/models/7b-a1b")
SHAPE, DEEP = (load_model_shape(ROOT / "recipe/configs/models" / name) for name in ("30b-a3b", "30b-a3b-deep"))


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
    assert large.cost(EXPECTED).usd <= 1.05 * small.cost(EXPECTED).usd
    assert large.work.tokens == small.work.tokens
    assert large.work.ep == small.work.ep


def test_the_config_for_a_nic_per_gpu_is_there_because_it_is_faster_on_its_network_alone():
    own, other = planned("a100_256_8x200g"), planned("a100_256", "8x200g")
    assert own.expected.step_s < (1 - EQUAL) * other.expected.step_s
    assert own.work.tokens_per_step == other.work.tokens_per_step
    assert planned("a100_256_8x200g", "400g").expected.step_s > planned("a100_256").expected.step_s


# A run moves between cluster sizes only within one ZeRO stage; this is the most that it may cost at one of them.
PRICE_OF_ONE_STAGE = 0.03


@pytest.mark.parametrize("config", shipped.SHIPPED, ids=lambda c: c.name)
def test_no_other_stage_would_be_much_faster_than_a_shipped_config(config):
    work = planned(config.name).work
    facts = RunFacts(work.run.seq_length)
    others = search(
        work.shape, work.cluster, facts, Budget(), config.sequences, stages=(1, 2), ep_sizes=(config.ep,)
    )  # fmt: skip
    assert not others[0].fits or others[0].step_s > (1 - PRICE_OF_ONE_STAGE) * planned(config.name).expected.step_s


@pytest.mark.parametrize("config", [c for c in shipped.SHIPPED if c.ep > 1], ids=lambda c: c.name)
def test_where_no_expert_parallelism_is_a_tenth_faster_a_file_beside_says_so(config):
    beside = [c.name for c in shipped.SHIPPED if c.beside == config.name]
    assert bool(beside) == (shipped.saved_without_expert_parallelism(config) > shipped.FASTER_BY), beside


def ranked(gpus: int = 64, interconnect: str = "400g", **options):
    cluster = cluster_of("a100-80gb", gpus, interconnect)
    shape = options.pop("shape", SHAPE)
    return search(shape, cluster, RunFacts(), Budget(), options.pop("sequences", 16 * gpus), **options)


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
    reasons = {c.choice: why_it_lost(c, choices[0]) for c in choices}
    assert "crosses nodes" in reasons[Choice(3, 16, 16, "selective", exchange_parts=2)]
    assert "in each of 16 micro-batches" in reasons[Choice(3, 8, 1, "selective", exchange_parts=2)]
    assert reasons[Choice(2, 1, 16, "selective")].startswith("out of memory")
    assert "modules wait for" in reasons[replace(choices[0].choice, prefetch_layers=0.0)]


def test_a_choice_is_written_and_named_as_it_is_planned(choices):
    for c in choices:
        work = c.plan.work
        assert parsed(c.config) == work.ds
        assert c.choice.exchange_parts == work.exchange_parts
        assert ("weights kept" in c.name) == c.choice.keep_weights
        assert (
            c.choice.stage == 3 and work.ds.zero_optimization.stage3_max_reuse_distance == NO_LIMIT
        ) == c.choice.keep_weights
        if c.choice.recompute == "selective" and work.kept.layers:
            assert f", {work.ds.recipe.kept_gib:g} GiB kept" in c.name
            assert c.plan.memory.peak_gib <= FILLED * work.cluster.accelerator.memory_gib
        assert work.ds.recipe.kept_gib == Plan(work).kept_gib_that_fills()
    assert len({c.name for c in choices}) == len(choices)
    assert all(c.choice.exchange_parts == 1 for c in choices if c.choice.ep == 1)


@pytest.mark.parametrize("choice", [Choice(3, 8, 2, ""), Choice(3, 8, 1, "", keep_weights=True), Choice(3, 1, 1, "")])
def test_with_all_that_fits_kept_a_step_is_as_fast_as_where_nothing_is_recomputed(choice):
    cluster = cluster_of("a100-80gb", 256, "8x200g")
    selective, none = (
        planned_choice(SHAPE, cluster, RunFacts(), Budget(), 2048, replace(choice, recompute=mode))
        for mode in ("selective", "none")
    )
    assert none.fits
    assert none.choice.recompute not in SEARCHED_RECOMPUTES
    assert selective.step_s <= (1 + EQUAL) * none.step_s


def test_variants_of_the_best_alone_lose_nothing():
    """Against every combination, on a model and a cluster where these are soon planned."""
    shape, cluster = load_model_shape(ROOT / "recipe/configs/models/tiny"), cluster_of("a100-80gb", 16, "200g")
    (sequences, facts, budget), ep_sizes = (16 * 4, RunFacts(), Budget()), (4,)
    best = search(shape, cluster, facts, budget, sequences, stages=(3,), ep_sizes=ep_sizes)[0]
    every = itertools.product(
        (3,),
        ep_sizes,
        (1, 2, 4),
        (*SEARCHED_RECOMPUTES, "none"),
        (False, True),
        EXCHANGE_PARTS,
        (False, True),
        PREFETCH_LAYERS,
    )
    plans = [planned_choice(shape, cluster, facts, budget, sequences, Choice(*choice)) for choice in every]
    assert best.step_s <= (1 + EQUAL) * min(c.step_s for c in plans if c.fits)


def test_of_equally_fast_choices_what_a_slower_network_slows_least_wins():
    kept = ranked(gpus=256, sequences=2048, shape=DEEP, stages=(3,), ep_sizes=(8,))
    gathered = next(c for c in kept if c.choice == replace(kept[0].choice, keep_weights=False))
    assert kept[0].choice.keep_weights
    assert gathered.step_s == pytest.approx(kept[0].step_s, rel=0.005)
    slower, slowest = (on_half_the_network(c.plan).expected.step_s for c in (kept[0], gathered))
    assert slowest > 1.05 * slower > 1.05 * kept[0].step_s


def test_the_reasons_stand_in_one_column(choices):
    lines = describe_search(choices, []).splitlines()[2:]
    reasons = {line.index(mark) for line in lines for mark in (" +", " out of memory") if mark in line}
    assert len(lines) > 3
    assert len(reasons) == 1


def test_a_search_can_be_narrowed():
    narrowed = ranked(stages=(3,), ep_sizes=(8,), recomputes=("non_reentrant",))
    assert {c.plan.work.run.recompute for c in narrowed} == {"non_reentrant"}
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
    assert 1.0 < paper[0].estimate.step_s / planned("a100_256").expected.step_s < 1.25


def test_more_pipeline_stages_hold_less_weight_and_wait_longer():
    cluster = cluster_of("a100-80gb", 256, "8x200g")
    found = {
        p.strategy.pp: p
        for p in on_paper(SHAPE, cluster, RunFacts(), 2048)
        if (p.strategy.tp, p.strategy.recompute) == (1, "none")
    }
    assert found[8].peak_gib < found[2].peak_gib
    assert found[8].estimate.bubble_s > found[2].estimate.bubble_s


def test_a_search_shows_how_far_it_is_where_it_is_asked_to(monkeypatch, capsys):
    monkeypatch.setattr(searching, "LOG_EVERY_S", 0.0)
    few = {"stages": (1,), "ep_sizes": (8,), "recomputes": ("none",)}
    search(SHAPE, cluster_of("a100-80gb", 8, None), RunFacts(), Budget(), 16, **few)
    assert capsys.readouterr().err == ""
    ranked = search(SHAPE, cluster_of("a100-80gb", 8, None), RunFacts(), Budget(), 16, **few, shows_progress=True)
    lines = capsys.readouterr().err.splitlines()
    shown = [re.match(r"(.*) (\d/\d)", line) for line in lines]
    # two micro-batches; then both with exchanges in two and in four parts
    assert [match.groups() for match in shown if match] == [
        *(("plans", f"{n}/2") for n in (1, 2)), *(("plans of exchanges", f"{n}/4") for n in (1, 2, 3, 4)),
    ]  # fmt: skip
    assert len(ranked) == 6
