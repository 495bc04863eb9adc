"""A step's time: what a recomputed layer keeps, what its exchanges hide, and what its links slow down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.kept import KEEPABLE, kept_within
from recipe.planner.search.ds_writer import ds_config_for, parsed
from recipe.planner.timing.kernels import COMPILED
from recipe.planner.timing.layers import LayerLoad, layer_of
from recipe.planner.timing.links import CONTENTION, Links
from recipe.planner.timing.moe_exchanges import exchanges
from recipe.planner.timing.timeline import EXPECTED, seconds_saved, step_time
from recipe.planner.workload import RunFacts, Workload
from recipe.planner.zero3 import BACKWARD, FORWARD, RECOMPUTE
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
PLAIN = replace(EXPECTED, straggler=0.0)


def work(recompute="non_reentrant", *, ep=8, gib=0.0, parts=1, network="400g") -> Workload:
    """8 sequences a micro-batch on 256 A100."""
    config = ds_config_for(SHAPE, 256, stage=3, ep_size=ep, micro_batch=8, accumulation=2)
    config["recipe"] = {"exchange_parts": parts} | ({"kept_gib": gib} if gib else {})
    run = RunFacts(recompute=recompute)
    return Workload(SHAPE, cluster_of("a100-80gb", 256, network), parsed(config), run)


def time(*args, **options):
    return step_time(work(*args, **options), PLAIN)


def passes(one: Workload, kept=()):
    load = LayerLoad(
        True, one.tokens, 4096, expert_ranks=one.ep, imbalance=PLAIN.imbalance, parts=one.exchange_parts
    )  # fmt: skip
    layer = layer_of(one.cluster.accelerator, one.architecture, COMPILED, load)
    return exchanges(one, Links(one.cluster, PLAIN.network_efficiency), PLAIN, layer, kept)


def test_rows_travel_out_and_home_in_each_pass_but_not_home_again():
    total = {phase: one.exposed_s + one.hidden_s for phase, one in passes(work()).items()}
    rows = work().tokens * SHAPE.num_experts_per_tok * PLAIN.imbalance
    links = Links(work().cluster, PLAIN.network_efficiency)
    row, weight, counts = (
        links.all_to_all_s(size, work().expert_group) for size in (rows * SHAPE.hidden_size * 2, rows * 4, 96 * 4)
    )
    assert total[FORWARD] == pytest.approx(2 * row + weight + counts)
    assert total[BACKWARD] == pytest.approx(2 * row + weight)
    assert total[RECOMPUTE] == pytest.approx(row + weight)
    again = passes(work("reentrant"))
    assert again[RECOMPUTE] == again[FORWARD]
    assert passes(work("none")).keys() == {FORWARD, BACKWARD}
    assert passes(work("selective", gib=1), ["rows"]).keys() == {FORWARD, BACKWARD}
    assert passes(work(ep=1)) == {}


@pytest.mark.parametrize(
    "options",
    [("none",), ("reentrant",), ("non_reentrant",), ("selective",)],
    ids=lambda options: options[0],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_exchanges_take_as_long_as_the_collectives_that_the_engine_issues(options, parts):
    one = work(*options, gib=70.0, parts=parts)  # rows too are kept, of some layers
    time = step_time(one, PLAIN)
    counted = sum(s for c, s in time.collectives_s.items() if c.op == "all_to_all")
    keeps, layers = one.kept.moe_layers("rows", SHAPE), SHAPE.num_moe_layers
    assert (0 < keeps < layers) == (options == ("selective",))
    by_hand = sum(
        number * (p.exposed_s + p.hidden_s)
        for number, kept in ((layers - keeps, ()), (keeps, ("rows",)))
        for p in passes(one, kept).values()
    )
    assert 2 * by_hand == pytest.approx(counted, rel=1e-6)


def test_an_undivided_layer_hides_one_exchange_of_each_pass_behind_its_shared_experts():
    one = passes(work())
    assert one[FORWARD].hidden_s > 0
    assert one[FORWARD].exposed_s > 0.5 * (one[FORWARD].exposed_s + one[FORWARD].hidden_s)
    halves = passes(work(parts=2))
    for phase in (FORWARD, BACKWARD, RECOMPUTE):
        assert halves[phase].exposed_s < one[phase].exposed_s


def test_what_is_hidden_slows_the_computation_beside_it_by_the_link_it_takes():
    whole, halves = time(), time(parts=2)
    assert whole.exposed_s["all-to-all"] > halves.exposed_s["all-to-all"] > 0
    hidden = [sum(p.hidden_s for p in passes(work(parts=parts)).values()) for parts in (1, 2)]
    # 2 micro-batches of 23 MoE layers; what the rings are beside is as long as before, and covers them
    more = 2 * SHAPE.num_moe_layers * CONTENTION["NVLink"] * (hidden[1] - hidden[0])
    assert halves.contention_s - whole.contention_s == pytest.approx(more)
    assert CONTENTION["NVLink"] > CONTENTION["network"]


def test_recomputation_is_less_than_the_forward_pass_and_less_with_what_is_kept():
    modes = [time("none"), time("selective", gib=20), time("non_reentrant"), time("reentrant")]
    again = [one.recompute_s for one in modes]
    assert again[0] == 0 < again[1] < again[2] < again[3]
    assert modes[0].compute_s < modes[1].compute_s < modes[2].compute_s < modes[3].compute_s
    saved = saved_by(work("selective", gib=20))
    assert modes[2].step_s - modes[1].step_s == pytest.approx(
        saved, rel=0.01
    )  # nearly: one result hides another's exchange


def saved_by(one: Workload) -> float:
    """Seconds of a step by hand: layers that keep a result, times what that saves in each."""
    total = 0.0
    for name in KEEPABLE:
        for number in range(one.kept.count(name)):
            total += seconds_saved(one, name, moe=number >= SHAPE.first_k_dense_replace, assumed=PLAIN)
    return total * one.accumulation


def test_the_budget_is_spent_on_whole_layers_from_the_first():
    one = work("selective", gib=20)
    assert one.kept == kept_within(SHAPE, gib=20, tokens=one.tokens, element=2, ep_size=8, compiled=True)
    assert one.kept.count("attention") == 24


@pytest.mark.parametrize("ep", [1, 8])
def test_a_step_of_whole_layers_is_that_in_which_nothing_is_recomputed(ep):
    whole, none = (step_time(work(mode, gib=1000, ep=ep), PLAIN) for mode in ("selective", "none"))
    assert whole == none
    some = work("selective", gib=90, ep=ep)
    assert 0 < some.kept.whole < SHAPE.num_hidden_layers
    assert 0 < step_time(some, PLAIN).recompute_s < step_time(work("selective", gib=70, ep=ep), PLAIN).recompute_s


@pytest.mark.parametrize("ep", [1, 8])
def test_every_result_that_can_be_kept_saves_seconds(ep):
    one = work(ep=ep)
    saved = {name: seconds_saved(one, name) for name in KEEPABLE}
    assert min(saved.values()) > 0
    assert seconds_saved(one, "rows", moe=False) == 0
    if ep == 8:  # and their exchange
        assert saved["rows"] > seconds_saved(work(ep=1), "rows")


def test_weights_that_stay_gathered_are_gathered_once():
    one = work()
    zero = one.ds.zero_optimization.model_copy(
        update={"stage3_max_reuse_distance": 10**12, "stage3_max_live_parameters": 10**12}
    )
    stays = replace(one, ds=one.ds.model_copy(update={"zero_optimization": zero}))

    def gathered_s(time) -> float:
        return sum(s for c, s in time.collectives_s.items() if c.op == "all_gather")

    before, after = step_time(one, PLAIN), step_time(stays, PLAIN)
    assert gathered_s(after) < 0.6 * gathered_s(before)
    assert after.step_s < before.step_s
    assert after.compute_s == before.compute_s
