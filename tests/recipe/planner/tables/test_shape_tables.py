"""Shapes are compared by the cost of a loss: the laws are those of their papers, and the arithmetic is that of a hand."""

from __future__ import annotations

import math

import pytest

from recipe.planner.tables import shape_tables
from recipe.planner.tables.shape_tables import (
    BASELINE,
    DEEP,
    DEPTH_50M,
    FLAGSHIP,
    LAWS,
    SHAPES,
    TOKENS,
    by_leverage,
    cost_to_loss,
    depth_cost,
    efficiency_leverage,
    estimates,
    fine_grained,
    five_factors,
    flops,
    leverage_of,
    mean_cost,
    parameters,
    planned,
    room_for_depth,
    sources,
    tokens_at,
    with_depth,
)
from recipe.planner.timing.timeline import EXPECTED

pytestmark = pytest.mark.xdist_group("planner")  # beside tests/test_docs.py: they share what the planner has searched
WIDE = SHAPES["32 × 2,560, 24 heads, 6 of 96 × 1,280"]
ODD = "24 × 2,880, 24 heads, 3 of 48 × 2,880"  # of others, whose widths are no multiples of 128


def test_the_laws_give_what_their_papers_say():
    # arXiv 2402.07871, table 2: 64 x 7B and 64 x 1T; a third of a layer is attention, which is not there 64 times
    for dense, finer, tokens, loss in ((7e9, 32, 137.6e9, 2.076), (1e12, 64, 7.94e12, 1.367)):
        assert fine_grained(dense * (1 / 3 + 64 * 2 / 3), finer, tokens) == pytest.approx(loss, abs=0.02)
    # arXiv 2509.23678: 6.78 active experts and a shared part of 0.31 are best; of 30B parameters 40% active are
    best = min((i / 100 for i in range(200, 1500)), key=lambda experts: five_factors(30e9, 3e9, experts, 0.14, 1e12))
    assert best == pytest.approx(6.78, abs=0.01)
    shared = min((i / 100 for i in range(100)), key=lambda part: five_factors(30e9, 3e9, 7, part, 1e12))
    assert shared == pytest.approx(0.31, abs=0.01)
    active = min((i / 100 for i in range(1, 100)), key=lambda part: five_factors(30e9, part * 30e9, 6.78, 0.31, 1e12))
    assert active == pytest.approx(0.40, abs=0.02)
    # arXiv 2507.17702, section 4.2.2: about 7 at 3.1% active, granularity 12 and 1e22 FLOPs; a dense model has 1
    assert efficiency_leverage(0.031, 12, 1e22) == pytest.approx(7, rel=0.03)
    assert efficiency_leverage(1.0, 12, 1e22) == pytest.approx(1, abs=0.02)


def test_tokens_to_a_loss_are_those_of_a_hand():
    def loss(
        shape, tokens
    ):  # 2 + 1 after a million million tokens for the deep shape; 2 + 2 / sqrt(D / 1e12) for others
        return 2 + (1 if shape is DEEP else 2) / math.sqrt(tokens / 1e12)

    assert tokens_at(loss, DEEP, 3.0) == pytest.approx(1e12)
    assert tokens_at(loss, WIDE, 3.0) == pytest.approx(4e12)
    assert tokens_at(loss, WIDE, 1.9) == math.inf
    # four times the tokens in the same time: 2 + 2 / 2 = 3 against 3, so depth may cost nothing
    assert room_for_depth(loss, WIDE, 0.25) == pytest.approx(0.0)
    # sixteen times: 2 + 2 / 4 = 2.5 against 3
    assert room_for_depth(loss, WIDE, 1 / 16) == pytest.approx(0.5 / 3)
    assert with_depth(loss)(WIDE, 1e12) == pytest.approx(4 * (1 + depth_cost(WIDE)))


def test_equal_leverage_needs_equal_flops():
    assert all(law.tokens(DEEP) == pytest.approx(TOKENS) for law in LAWS)
    assert flops(DEEP) == pytest.approx(23.05e9, rel=1e-3)  # 24.66 and 6 * 268M of the head less
    ratio = leverage_of(DEEP, flops(DEEP) * TOKENS) / leverage_of(WIDE, flops(DEEP) * TOKENS)
    assert ratio == pytest.approx(1.0)  # as many experts in the same proportion
    assert by_leverage(WIDE) == pytest.approx(TOKENS * flops(DEEP) / flops(WIDE))


def test_depth_costs_what_its_source_has():
    def at(aspect: int) -> float:
        return depth_cost(DEEP.model_copy(update={"hidden_size": 48 * aspect}))

    assert depth_cost(DEEP) == depth_cost(DEEP, DEPTH_50M) == 0
    assert at(700) - at(27) == pytest.approx(0.028 - 0.0005)
    assert at(1400) > at(700)  # the last line goes on
    # halfway between 27 and 250 in the logarithm
    assert at(82) - at(27) == pytest.approx((0.006 - 0.0005) / 2, rel=0.01)
    assert depth_cost(WIDE, DEPTH_50M) < 0 < depth_cost(WIDE) < 0.002  # the lowest point is about there


def test_money_is_tokens_times_the_planned_step():
    plan, cost = planned(BASELINE), cost_to_loss(BASELINE, TOKENS)
    hours = TOKENS / (2048 * 4096) * plan.expected.step_s / plan.reliability.goodput / 3600 * 256
    assert cost.gpu_hours == pytest.approx(hours)
    assert cost.usd == pytest.approx(hours * plan.usd_per_gpu_hour)
    assert cost_to_loss(BASELINE, 2 * TOKENS).usd == pytest.approx(2 * plan.cost(EXPECTED).usd)


def test_the_mean_is_over_the_laws_and_those_with_depth():
    usd = estimates(FLAGSHIP)
    assert len(usd) == 5
    assert usd[:3] == [cost_to_loss(FLAGSHIP, law.tokens(SHAPES[FLAGSHIP])).usd for law in LAWS]
    assert all(deep > plain for deep, plain in zip(usd[3:], usd, strict=False))  # it has half of the layers
    product = math.prod(money / planned(BASELINE).cost(EXPECTED).usd for money in usd)
    assert mean_cost(FLAGSHIP) == pytest.approx(product ** (1 / 5))
    assert mean_cost(BASELINE) == pytest.approx(1)


def test_the_shipped_flagship_is_the_shape_whose_mean_is_lowest():
    total = parameters(SHAPES[FLAGSHIP])[0]
    alike = [name for name, shape in SHAPES.items() if parameters(shape)[0] == pytest.approx(total, rel=0.03)]
    assert len(alike) > 3
    assert min(alike, key=mean_cost) == FLAGSHIP
    rows = [line for line in shape_tables.shapes_table().splitlines() if "the flagship**" in line]
    assert [FLAGSHIP in row for row in rows] == [True] * 3
    assert rows[-1].endswith(f"| {mean_cost(FLAGSHIP):.3f} |")


@pytest.mark.parametrize("name", SHAPES)
def test_candidates_are_of_one_size_and_fit_tiles_and_ranks(name):
    shape = SHAPES[name]
    assert shape.problems() == []
    assert sum(shape.parameters().values()) == pytest.approx(30.2e9, rel=0.04)
    assert sum(shape.active_parameters().values()) == pytest.approx(3.57e9, rel=0.08)
    assert shape.n_routed_experts % 8 == 0
    widths = shape.hidden_size, shape.intermediate_size, shape.moe_intermediate_size
    assert all(width % 128 == 0 for width in widths) == (name != ODD)
    assert f"{shape.num_hidden_layers} × {shape.hidden_size:,}" in name
    assert f"{shape.num_experts_per_tok} of {shape.n_routed_experts} × {shape.moe_intermediate_size:,}" in name


def test_what_a_law_was_fitted_on_is_told_and_every_shape_has_its_rows(monkeypatch):
    told = sources()
    assert all(
        law.arxiv in told and law.fitted_on in told and law.not_in_it.split(";")[0] in told and "depth" in law.not_in_it
        for law in LAWS
    )
    assert "beyond what they were fitted on" in told
    monkeypatch.setattr(shape_tables, "SHAPES", {BASELINE: DEEP, "other": DEEP})
    plan = planned(BASELINE)
    monkeypatch.setattr(shape_tables, "planned", lambda name: plan)
    printed = shape_tables.shapes_table()
    assert printed.count("| other |") == 3
    assert told in printed
    assert "| +0% |" in printed
    assert "-0%" not in printed
