"""What docs/design.md says of the cost of a loss: of a larger batch, of one percent, and of the flagship by a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipe.base.tables import markdown_table, rounded_count
from recipe.planner.phases import PhasePlan, total_cost
from recipe.planner.plan import Plan
from recipe.planner.search import shipped
from recipe.planner.tables.design_tables import DESIGN_POINT, GPU, NETWORK, SCALED
from recipe.planner.tables.phase_tables import flagship_phases
from recipe.planner.tables.shape_tables import FLAGSHIP, LAWS, SHAPES, TOKENS, Loss, tokens_at
from recipe.planner.timing.timeline import EXPECTED
from recipe.scaling.cost.critical_batch import RULES, tokens_factor, worth_span
from recipe.scaling.cost.span import Span
from recipe.scaling.ladder_file import load_ladder, planned_loss
from recipe.scaling.law import size_of

LADDER = shipped.ROOT / "benchmarks" / "results" / "ladder.json"
BETTER = 0.99  # of the loss: what one percent less costs


def more_tokens(plan: Plan, base: Plan, tokens: float) -> Span:
    """Tokens that a loss takes with a plan's batch over those with the base's, after which that has the loss."""
    batches = (plan.work.tokens_per_step, base.work.tokens_per_step)
    ratios = []
    for rule in RULES:
        factor, of_base = (tokens_factor(rule, batch, tokens) for batch in batches)
        ratios.append(factor / of_base)
    return Span(ratios[0], min(ratios), max(ratios))


def batch_price_table() -> str:
    """More GPUs and larger batches: what the loss of 256 GPUs after 1T tokens takes on them."""
    plans = [scaled_plan(gpus, per_rank) for gpus, per_rank in SCALED]
    base, rows = plans[0], []
    for plan in plans:
        price = more_tokens(plan, base, TOKENS)
        cost = plan.cost(EXPECTED)
        ratio = cost.usd / base.cost(EXPECTED).usd
        rows.append([
            f"{plan.work.ranks:,}", rounded_count(plan.work.tokens_per_step), _span(price, TOKENS / 1e12, "{:.2f}T"), f"{ratio:.2f}",
            _span(price, ratio, "{:.2f}"), _span(price, cost.days, "{:.1f}"), _span(price, cost.usd / 1000, "{:,.0f}"),
        ])  # fmt: skip
    head = ["GPUs", "batch, tokens", "tokens to this loss", "cost of a token", "cost of this loss", "days", "kUSD"]
    return markdown_table(head, rows)


def scaled_plan(gpus: int, per_rank: int) -> Plan:
    s = shipped.named(DESIGN_POINT)
    return shipped.fastest(s.model, GPU, gpus, NETWORK, gpus * per_rank, s.ep).plan


def _span(price: Span, unit: float, form: str) -> str:
    """The price in another unit; one number where all rules agree."""
    if price.low == price.high:
        return form.format(price.value * unit)
    return Span(*(end * unit for end in vars(price).values())).written(form.format)


# Of pretrain_30b.yaml a ds_config, and what is set in the run config.
SCHEDULES = {
    "`a100_256.json`": ("a100_256", ()),
    "`a100_256.json`, without the ramp": ("a100_256", ("phases.0.batch_tokens=8388608",)),
    "`a100_1024.json`": ("a100_1024", ()),
    "`a100_1024.json`, without the ramp": (
        "a100_1024", ("phases.0.batch_tokens=33554432", "phases.1.batch_tokens=33554432"),
    ),
    "`a100_1024.json`, 16.8M tokens a step in `stable` and `decay`": (
        "a100_1024", ("phases.2.batch_tokens=16777216", "phases.3.batch_tokens=16777216"),
    ),
}  # fmt: skip


def batch_ramp_table() -> str:
    """What the batches of pretrain_30b.yaml's phases do to the worth of its tokens, and what other batches would."""
    rows = [_of_phases(title, flagship_phases(name, overrides)) for title, (name, overrides) in SCHEDULES.items()]
    return markdown_table(
        ["pretrain_30b.yaml with", "worth of its tokens", "days", "kUSD", "kUSD for 100B of worth"], rows
    )


def _of_phases(title: str, phases: Sequence[PhasePlan]) -> list[str]:
    value, cost = worth_span([(p.tokens, p.phase.tokens_per_step) for p in phases]), total_cost(phases)
    each = Span(*(cost.usd / 1000 / (worth / 1e11) for worth in (value.value, value.high, value.low)))
    return [
        title,
        value.written(rounded_count),
        f"{cost.days:.1f}",
        f"{cost.usd / 1000:,.0f}",
        each.written("{:.1f}".format),
    ]


def loss_price_table() -> str:
    """What one percent less loss costs the flagship by published laws of MoE models, and what a ladder says of it."""
    # 256 GPUs, and 1,024 with half of their micro-batch and with the same.
    offers = [scaled_plan(256, 8), scaled_plan(1024, 4), scaled_plan(1024, 8)]
    rows = [row for law in LAWS if law.loss is not None for row in _of_law(law.name, law.loss, offers)]
    head = ["30b-a3b by", "loss, nats", "tokens", *(_titled(plan) for plan in offers)]
    return f"{markdown_table(head, rows)}\n\n{ladder_says(LADDER)}"


def _titled(plan: Plan) -> str:
    return f"{plan.work.ranks:,} GPUs, {rounded_count(plan.work.tokens_per_step)}: days, kUSD"


def _of_law(name: str, loss: Loss, offers: Sequence[Plan]) -> list[list[str]]:
    """The loss of the first offer after 1T, and one percent less, with each offer."""
    wanted, rows = loss(SHAPES[FLAGSHIP], TOKENS), []
    for title, target in ((name, wanted), ("1% less", BETTER * wanted)):
        tokens = tokens_at(loss, SHAPES[FLAGSHIP], target)
        cells = []
        for plan in offers:
            needed = tokens * more_tokens(plan, offers[0], tokens).value
            cost = plan.cost(EXPECTED, needed)
            cells.append(f"{cost.days:.1f}, {cost.usd / 1000:,.0f}")
        rows.append([title, f"{target:.3f}", rounded_count(tokens), *cells])
    return rows


def ladder_says(path: Path) -> str:
    """What the law of a ladder says of the flagship after 1T tokens, and how far beyond the ladder that is."""
    if not path.exists():
        return "No ladder has been fitted here yet."
    ladder, size = load_ladder(path), size_of(SHAPES[FLAGSHIP], TOKENS)
    times = " and ".join(f"{getattr(size, name) / largest:,.0f}" for name, largest in ladder.largest.items())
    far = f"The flagship after 1T has {times} times the active parameters and tokens of the largest run of the ladder"
    if ladder.problem_with(size):
        shares = ", ".join(f"{share:.3f}" for share in sorted({run.size.share for run in ladder.runs}))
        return f"{far}, whose active share is {shares} where the flagship's is {size.share:.3f}: that ladder prices no loss of the flagship."
    rows = [
        [source, *(f"{both['bits_per_byte'][end]:.3f}" for end in ("value", "low", "high"))]
        for source, both in planned_loss(ladder, size)["sources"].items()
    ]
    table = markdown_table(["30b-a3b after 1T by the ladder", "bits per byte", "least", "most"], rows)
    return f"{table}\n\n{far}. The interval covers noise between runs, not a law that bends on such a way."


LOSS_TABLES = {"batch_price": batch_price_table, "batch_ramp": batch_ramp_table, "loss_price": loss_price_table}
