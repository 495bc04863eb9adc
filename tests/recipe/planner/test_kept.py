"""What a budget keeps of recomputed layers: which results, of how many layers, and how many bytes they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.base.hardware import GIB
from recipe.base.model_shape import load_model_shape
from recipe.model import recompute
from recipe.planner import kept as kept_module
from recipe.planner.kept import (
    EVERYTHING,
    FILL_IMBALANCE,
    KEEPABLE,
    NOTHING,
    Kept,
    Rows,
    kept_bytes,
    kept_within,
    rows_of,
    saved_bytes,
)
from recipe.planner.search.shipped import chosen, named
from recipe.planner.timing.timeline import EXPECTED, step_time
from recipe.planner.workload import Workload
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")  # the first of 24 layers is dense
TOKENS = 8 * 4096


def fill(gib: float, **changes) -> Kept:
    return kept_within(
        SHAPE, **({"gib": gib, "tokens": TOKENS, "element": 2, "ep_size": 8, "compiled": True} | changes)
    )


def budgeted_bytes(kept: Kept, ep: int) -> float:
    rows = rows_of(SHAPE, tokens=TOKENS, ep_size=ep, imbalance=FILL_IMBALANCE)
    return sum(
        kept_bytes(SHAPE, name, rows, moe=number > 0, element=2, compiled=True)
        for number in range(SHAPE.num_hidden_layers)
        for name in kept.of_layer(number)
    )


@pytest.mark.parametrize("ep", [1, 8])
@pytest.mark.parametrize("gib", [0.5, 20.0, 38.0, 55.0])
def test_a_budget_is_filled_and_not_exceeded(gib, ep):
    kept = fill(gib, ep_size=ep)
    left = gib * GIB - budgeted_bytes(kept, ep)
    rows = rows_of(SHAPE, tokens=TOKENS, ep_size=ep, imbalance=FILL_IMBALANCE)
    missing = [
        kept_bytes(SHAPE, name, rows, moe=True, element=2)
        for name in KEEPABLE
        if kept.count(name) < SHAPE.num_hidden_layers
    ]
    assert 0 <= left < min(missing)  # one layer more of anything would exceed it


def test_the_best_is_kept_first_and_from_the_first_layer_on():
    every = SHAPE.num_hidden_layers
    counts = {gib: [fill(gib).count(name) for name in KEEPABLE] for gib in (0, 2, 20, 200)}
    assert counts[0] == [0] * len(KEEPABLE)
    assert 0 < counts[2][0] < every  # and of what is worth less, less than a layer more of the first
    assert counts[20][:2] == [every, every]
    assert 0 < counts[20][2] < every
    assert counts[200] == [every] * len(KEEPABLE)
    kept = fill(2)
    last = kept.count("attention") - 1
    assert "attention" in kept.of_layer(0) & kept.of_layer(last)
    assert "attention" not in kept.of_layer(last + 1)
    assert NOTHING.of_layer(0) == frozenset()


def test_whole_layers_come_last_from_the_first_on_where_all_results_of_all_are_kept():
    every = SHAPE.num_hidden_layers
    results = budgeted_bytes(Kept(tuple(dict.fromkeys(KEEPABLE, every).items())), 8) / GIB
    assert fill(results - 0.1).whole == 0
    some = fill(results + 20)
    assert 0 < some.whole < every
    assert [some.count(name) for name in KEEPABLE] == [every] * len(KEEPABLE)
    assert EVERYTHING in some.of_layer(some.whole - 1) - some.of_layer(some.whole)
    larger = kept_bytes(SHAPE, EVERYTHING, rows_of(SHAPE, tokens=TOKENS, ep_size=8, imbalance=FILL_IMBALANCE), moe=True,
                        element=2, compiled=True)  # fmt: skip
    assert 0 <= (results + 20) * GIB - budgeted_bytes(some, 8) < larger
    assert fill(results + 20, compiled=False).whole < some.whole  # whose layers save more
    assert fill(1000).whole == every
    assert recompute.EVERYTHING == EVERYTHING


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_whole_layer_holds_what_autograd_saves_of_it_and_no_input(moe, element, compiled):
    rows = rows_of(SHAPE, tokens=TOKENS, ep_size=8)
    kind = {"moe": moe, "element": element, "compiled": compiled}
    held = {name: kept_bytes(SHAPE, name, rows, **kind) for name in (*KEEPABLE, EVERYTHING)}
    assert held[EVERYTHING] > 0
    boundary = TOKENS * SHAPE.hidden_size * element
    assert sum(held.values()) + boundary == pytest.approx(sum(saved_bytes(SHAPE, rows, **kind).values()))


def test_the_dense_layers_are_not_counted_among_those_whose_rows_are_kept():
    assert fill(200).moe_layers("rows", SHAPE) == SHAPE.num_moe_layers
    assert fill(0).moe_layers("rows", SHAPE) == 0


def test_a_rank_with_all_experts_needs_no_room_for_imbalance_but_for_padding():
    assigned = TOKENS * SHAPE.num_experts_per_tok
    padded = assigned + SHAPE.n_routed_experts * 8
    assert rows_of(SHAPE, tokens=TOKENS, ep_size=1, imbalance=1.25) == Rows(TOKENS, padded, padded)
    spread = rows_of(SHAPE, tokens=TOKENS, ep_size=8, imbalance=1.25)
    assert spread == Rows(TOKENS, 1.25 * assigned, 1.25 * assigned + SHAPE.n_routed_experts // 8 * 8)
    in_parts = rows_of(SHAPE, tokens=TOKENS, ep_size=8, imbalance=1.25, parts=2)
    assert in_parts.computed - in_parts.arrived == 2 * (spread.computed - spread.arrived)


def with_budget(ep: int, parts: int, gib: float, name: str) -> Workload:
    """A shipped one, with selective recomputation."""
    work = chosen(named(name)).plan.work
    experts = work.ds.expert_parallel.model_copy(update={"autoep_size": ep})
    recipe = work.ds.recipe.model_copy(update={"kept_gib": gib, "exchange_parts": parts})
    ds = work.ds.model_copy(update={"expert_parallel": experts, "recipe": recipe})
    return replace(work, ds=ds, run=replace(work.run, recompute="selective"))


def neighbours_swapped() -> list[tuple[str, ...]]:
    return [(*KEEPABLE[:i], KEEPABLE[i + 1], KEEPABLE[i], *KEEPABLE[i + 2 :]) for i in range(len(KEEPABLE) - 1)]


@pytest.mark.parametrize(("ep", "parts"), [(8, 1), (8, 2), (1, 1)])
@pytest.mark.parametrize(("name", "everything_gib"), [("a100_8", 22), ("a100_256", 80)])
def test_no_other_order_makes_a_shipped_step_noticeably_faster(monkeypatch, name, everything_gib, ep, parts):
    """What a byte saves depends on what else is kept, on the balance of links and kernels, and on expert parallelism: the
    one order for all is within half a percent of the best."""
    budgets = [everything_gib * share for share in (0.15, 0.4, 0.6, 0.8)]

    def steps(order: tuple[str, ...]) -> list[float]:
        monkeypatch.setattr(kept_module, "KEEPABLE", order)
        return [step_time(with_budget(ep, parts, gib, name), EXPECTED).step_s for gib in budgets]

    shipped = steps(KEEPABLE)
    others = [steps(order) for order in neighbours_swapped()]
    for at, step in enumerate(shipped):
        assert step < 1.005 * min(other[at] for other in others)
    assert sum(shipped) < sum(steps(tuple(reversed(KEEPABLE))))
