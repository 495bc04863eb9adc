"""What a loss costs, as text for a terminal: of one plan the price of its batch, of many their ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipe.base.tables import aligned_rows, rounded_count
from recipe.planner.plan import Plan
from recipe.planner.timing.timeline import RANGE
from recipe.scaling.cost.critical_batch import batch_price
from recipe.scaling.cost.ranking import LossCost, NoCost
from recipe.scaling.cost.span import Span
from recipe.scaling.ladder_file import Ladder
from recipe.scaling.rungs import optimal_batch_tokens

BATCH_RULE = "by published critical batches of dense models, on at most 25B tokens"
HEAD = ("model", "GPUs", "batch", "tokens", "of it for the batch", "step, s", "days", "kUSD", "ds_config")


def batch_as_dict(plan: Plan) -> dict[str, Any]:
    """For the loss that the law gives the plan's tokens: the factor on them, and what it adds."""
    price, (days, usd) = batch_price(plan.work.tokens_per_step, plan.budget.tokens), _of_batch(plan)
    usual = optimal_batch_tokens(plan.budget.tokens)
    return {"ladder_batch_tokens": usual, "factor": price.as_dict(), "days": days.as_dict(), "usd": usd.as_dict()}


def describe_batch(plan: Plan) -> str:
    """The same in words."""
    price, (days, usd) = batch_price(plan.work.tokens_per_step, plan.budget.tokens), _of_batch(plan)
    return (
        f"  The law is of batches by the ladder's rule, {rounded_count(optimal_batch_tokens(plan.budget.tokens))} tokens a step for this run. "
        f"With {rounded_count(plan.work.tokens_per_step)} this loss takes {_more(price)} more tokens, {days.written(_short)} days and "
        f"{usd.written(_whole)} USD, {BATCH_RULE}."
    )


def _of_batch(plan: Plan) -> tuple[Span, Span]:
    """Days and USD of the tokens that the batch adds."""
    price = batch_price(plan.work.tokens_per_step, plan.budget.tokens)
    low, value, high = (
        plan.cost(a, (factor - 1) * plan.budget.tokens) for a, factor in zip(RANGE, price.ends, strict=True)
    )
    return Span(value.days, low.days, high.days), Span(value.usd, low.usd, high.usd)


def describe_ranking(
    ladder: Ladder, targets: Mapping[str, float], ranked: Sequence[LossCost], refused: Sequence[NoCost]
) -> str:
    """The cheapest first, then what has no cost and why, and what the numbers rest on."""
    title = "cost of a loss: " + ", ".join(f"{source} {loss:g}" for source, loss in targets.items()) + " bits per byte"
    lines = [title, *aligned_rows([HEAD, *map(_row, ranked)], left=(0, len(HEAD) - 1))]
    lines += [f"{_where(case)}: {case.reason}" for case in refused]
    return "\n".join([*lines, "", *_basis(ladder, ranked)])


def _row(cost: LossCost) -> list[str]:
    plan = cost.fastest.plan
    return [
        cost.model, f"{plan.work.ranks:,}", rounded_count(plan.work.tokens_per_step), cost.tokens.written(rounded_count),
        _more(cost.batch), f"{plan.expected.step_s:.2f}", cost.span("days").written(_short),
        cost.span("usd").written(lambda usd: _short(usd / 1000)), cost.fastest.name,
    ]  # fmt: skip


def _basis(ladder: Ladder, ranked: Sequence[LossCost]) -> list[str]:
    largest = ladder.largest
    times = [cost.active / largest["active"] for cost in ranked]
    most_tokens = max(cost.tokens.value for cost in ranked) / largest["tokens"]
    return [
        f"tokens      by the law of {len(ladder.runs)} runs ({ladder.path}); the models have {_times(times)} the active parameters of the "
        f"largest run and need up to {most_tokens:,.3g} times its tokens; the interval covers noise between runs, not a law that bends beyond them",
        f"batch       {BATCH_RULE}",
        "days, kUSD  from the fewest tokens at the optimistic step to the most at the conservative one; rows by the expected cost",
    ]


def _times(times: Sequence[float]) -> str:
    low, high = f"{min(times):,.3g}", f"{max(times):,.3g}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def _where(case: NoCost) -> str:
    if case.gpus is None or case.batch_tokens is None:
        return case.model
    return f"{case.model} on {case.gpus:,} GPUs, {rounded_count(case.batch_tokens)} tokens a step"


def _more(price: Span) -> str:
    return Span(*(factor - 1 for factor in vars(price).values())).written(lambda share: f"{share:.0%}")


def _short(number: float) -> str:
    """With two digits or more."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _whole(number: float) -> str:
    return f"{number:,.0f}"
