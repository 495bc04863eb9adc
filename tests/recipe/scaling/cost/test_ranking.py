"""Models and clusters are ranked by what the target costs; what has no cost says why."""

from __future__ import annotations

import json
import math

import pytest

from recipe.base.errors import UserError
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import Budget
from recipe.planner.search.search import Choice, global_batch_sequences, planned_choice
from recipe.planner.timing.timeline import CONSERVATIVE, OPTIMISTIC
from recipe.planner.workload import RunFacts
from recipe.scaling.cost import ranking
from recipe.scaling.cost.critical_batch import batch_price
from recipe.scaling.cost.ranking import rank
from recipe.scaling.cost.report import describe_ranking
from recipe.scaling.cost.span import Span
from recipe.scaling.cost.tokens import lowest_loss
from recipe.scaling.ladder_file import load_ladder
from tests.conftest import ROOT
from tests.planted_ladder import write_ladder

MODELS = ("30b-a3b", "30b-a3b-deep", "1b-a0.3b")
LAW_TOKENS = Span(5e11, 3e11, math.inf)


def plain(shape, cluster, batch_tokens):
    """In place of a search: one choice."""
    sequences = global_batch_sequences(batch_tokens, 4096, cluster.gpus)
    if sequences // cluster.gpus < 2:
        raise UserError("none of 1 choices fits")
    choice = Choice(3, 8, 2, "selective")
    return planned_choice(shape, cluster, RunFacts(), Budget(), sequences, choice)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return load_ladder(write_ladder(tmp_path_factory.mktemp("ladder") / "ladder.json", "30b-a3b"))


@pytest.fixture
def shapes():
    return {name: load_model_shape(ROOT / "recipe/configs/models" / name) for name in MODELS}


@pytest.fixture
def ranked(ladder, shapes, monkeypatch):
    monkeypatch.setattr(ranking, "tokens_to_loss", lambda _fits, _targets, sizes: [LAW_TOKENS] * len(sizes))
    clusters = [cluster_of("a100-80gb", gpus, "400g") for gpus in (256, 1024)]
    return rank(ladder, {"en": 0.6}, shapes, clusters, [8 * 2**20, 4 * 2**20], plain)


def test_the_cheapest_comes_first_and_its_cost_is_that_of_the_tokens_of_its_batch(ranked):
    costs, _ = ranked
    usd = [cost.span("usd").value for cost in costs]
    assert usd == sorted(usd)
    first = costs[0]
    plan = first.fastest.plan
    price = batch_price(plan.work.tokens_per_step, LAW_TOKENS.value)
    assert first.tokens.value == pytest.approx(LAW_TOKENS.value * price.value)
    steps = first.tokens.value / plan.work.tokens_per_step
    days = steps * plan.expected.step_s / plan.reliability.goodput / 86_400
    assert first.span("days").value == pytest.approx(days)


def test_the_ends_go_from_fewest_tokens_at_the_fast_step_to_most_at_the_slow_one(ranked):
    first = ranked[0][0]
    plan = first.fastest.plan
    assert first.span("usd").low == pytest.approx(plan.cost(OPTIMISTIC, first.tokens.low).usd)
    assert first.tokens.low == pytest.approx(
        LAW_TOKENS.low * batch_price(plan.work.tokens_per_step, LAW_TOKENS.low).low
    )
    assert first.tokens.high == first.span("days").high == plan.cost(CONSERVATIVE, math.inf).days == math.inf


def test_a_larger_batch_of_the_same_tokens_is_dearer_where_the_step_gains_nothing(ranked):
    costs, _ = ranked
    by_batch = {
        c.fastest.plan.work.tokens_per_step: c
        for c in costs
        if c.model == "30b-a3b" and c.fastest.plan.work.ranks == 256
    }
    small, large = by_batch[4 * 2**20], by_batch[8 * 2**20]
    assert large.batch.value > small.batch.value >= 1
    assert large.tokens.value > small.tokens.value


def test_what_has_no_cost_says_why(ranked, ladder):
    costs, refused = ranked
    of = {(case.model, case.gpus, case.batch_tokens): case.reason for case in refused}
    assert "has an active share of 0.072 and the model 0.108" in of["1b-a0.3b", None, None]
    assert of["30b-a3b", 1024, 4 * 2**20] == "none of 1 choices fits"
    text = describe_ranking(ladder, {"en": 0.6}, costs, refused)
    assert text.splitlines()[2].startswith(costs[0].model)
    assert "30b-a3b on 1,024 GPUs, 4.19M tokens a step: none of 1 choices fits" in text
    assert "to no end)" in text
    assert "times the active parameters of the largest run and need up to" in text
    assert json.loads(json.dumps([case.as_dict() for case in (*costs, *refused)], allow_nan=False))


def test_a_model_that_never_reaches_the_loss_is_a_row_with_the_end_of_its_law(ladder, shapes, monkeypatch):
    monkeypatch.setattr(
        ranking,
        "tokens_to_loss",
        lambda _fits, _targets, sizes: [Span(math.inf, 1e15, math.inf), LAW_TOKENS][: len(sizes)],
    )
    cluster = cluster_of("a100-80gb", 256, "400g")
    target = {"en": 0.5, "zh": 2.0}
    costs, refused = rank(ladder, target, shapes, [cluster], [8 * 2**20], plain)
    assert [cost.model for cost in costs] == ["30b-a3b-deep"]
    reasons = {case.model: case.reason for case in refused}
    end = lowest_loss(ladder.fits["en"].law, ranking.size_of(shapes["30b-a3b"], 1))
    assert reasons["30b-a3b"] == f"no number of tokens is enough; at this size the law ends at en {end:.4f}"


def test_a_target_that_no_model_reaches_is_an_error_before_any_search(ladder, shapes):
    def never(*_):
        raise AssertionError

    with pytest.raises(UserError, match=r"1b-a0\.3b: the ladder of .* 30b-a3b: no number of tokens is enough"):
        rank(ladder, {"en": 0.1}, {name: shapes[name] for name in ("30b-a3b", "1b-a0.3b")}, [], [], never)
