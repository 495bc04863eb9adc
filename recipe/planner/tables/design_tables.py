"""The planner's tables of docs/design.md, docs/performance.md, docs/plan.md and ds_configs/README.md.

The design point on other networks, its alternatives, its way to 1,024 GPUs, what compiling changes, and the shipped ds_configs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recipe.base.hardware import cluster_of
from recipe.base.tables import markdown_table
from recipe.planner.memory import saved_bytes_per_token
from recipe.planner.plan import Budget, Plan, on_half_the_network
from recipe.planner.search import shipped
from recipe.planner.search.megatron import megatron_core
from recipe.planner.search.search import Candidate, on_paper, planned_choice, search, why_it_lost
from recipe.planner.tables.phase_tables import long_context_table, phases_table
from recipe.planner.tables.reliability_tables import reliability_tables
from recipe.planner.tables.report import clusters_table, goodput_range
from recipe.planner.tables.shape_tables import shapes_table
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC
from recipe.planner.workload import RunFacts, Workload

DESIGN_POINT, GPU, NETWORK = "a100_256", "a100-80gb", "400g"
SCALED = ((256, 8), (512, 4), (512, 8), (1024, 2), (1024, 4), (1024, 8))  # GPUs, and sequences of a rank in a step
NETWORKS = {"200g": "200 Gb/s a node", "400g": "400 Gb/s a node", "8x200g": "200 Gb/s a GPU"}


def design_point(interconnect: str = NETWORK) -> Plan:
    """The plan of the shipped a100_256.json on another network."""
    work = shipped.chosen(shipped.named(DESIGN_POINT)).plan.work
    return Plan(Workload(work.shape, cluster_of(GPU, work.ranks, interconnect), work.ds, work.run))


def networks_table() -> str:
    """The design point's ds_config on slower and faster networks, and the step of one that is searched for each network."""
    head = ["a100_256 with", "step, s", "exposed", "MFU", "HFU", "tokens/s/GPU", "days for 1T", "kUSD", "own ds_config: step, s", "EP 1: step, s"]  # fmt: skip
    s = shipped.named(DESIGN_POINT)

    def own(network: str, ep: int) -> str:
        return f"{shipped.fastest(s.model, GPU, s.gpus, network, s.sequences, ep).step_s:.2f}"

    return markdown_table(
        head,
        [
            [name, *_costs(design_point(network)), own(network, s.ep), own(network, 1)]
            for network, name in NETWORKS.items()
        ],
    )


def _costs(plan: Plan) -> list[str]:
    days = [plan.cost(a).days for a in (EXPECTED, OPTIMISTIC, CONSERVATIVE)]
    return [
        f"{plan.expected.step_s:.2f}",
        f"{plan.expected.exposed_share:.1%}",
        f"{plan.mfu(EXPECTED):.1%}",
        f"{plan.hfu(EXPECTED):.1%}",
        f"{plan.tokens_per_s_per_gpu(EXPECTED):,.0f}",
        f"{days[0]:.1f} ({days[1]:.1f} to {days[2]:.1f})",
        f"{plan.cost(EXPECTED).usd / 1000:,.0f}",
    ]


def alternatives_table() -> str:
    """The best of each ZeRO stage and expert-parallel size on the design point's cluster, and others on paper."""
    work = design_point().work
    ranked = search(work.shape, work.cluster, RunFacts(), Budget(), work.ds.train_batch_size)
    rows = []
    for stage in (3, 2, 1):
        for ep in (1, 2, 4, 8, 16):
            best = next((c for c in ranked if _key(c) == (stage, ep)), None)
            if best is not None:
                rows.append(
                    [best.name, *_figures(best), "fastest" if best is ranked[0] else why_it_lost(best, ranked[0])]
                )
    for paper in on_paper(work.shape, work.cluster, RunFacts(), work.ds.train_batch_size)[:4]:
        step, against = paper.estimate.step_s, paper.estimate.step_s / ranked[0].step_s - 1
        rows.append([paper.name, f"{step:.2f}", f"{paper.peak_gib:.1f}", "", f"{against:+.0%}"])
    return markdown_table(["choice", "step, s", "peak GiB", "exposed", "against the fastest"], rows)


# What each idea changes of the design point without any; together in the last rows.
_EVERYTHING_AGAIN = {"recompute": "reentrant", "keep_weights": False, "exchange_parts": 1}
_WEIGHTS_INSIDE = {**_EVERYTHING_AGAIN, "recompute": "non_reentrant"}
_SELECTIVE = {**_EVERYTHING_AGAIN, "recompute": "selective"}
IDEAS: dict[str, dict[str, Any]] = {
    "layers run twice as they are (`reentrant`)": _EVERYTHING_AGAIN,
    "way home not run again, since routing weights apply before it (`non_reentrant`)": _WEIGHTS_INSIDE,
    "and what fills the memory kept (`selective`)": _SELECTIVE,
    "without keeping: exchanges in 2 parts": {**_WEIGHTS_INSIDE, "exchange_parts": 2},
    "without keeping: exchanges in 4 parts": {**_WEIGHTS_INSIDE, "exchange_parts": 4},
    "without keeping: weights kept to the backward pass": {**_WEIGHTS_INSIDE, "keep_weights": True},
    "`selective`, 2 parts": {**_SELECTIVE, "exchange_parts": 2},
    "`selective`, 4 parts": {**_SELECTIVE, "exchange_parts": 4},
    "`selective`, weights kept": {**_SELECTIVE, "keep_weights": True},
    "`selective`, 2 parts, weights kept": {**_SELECTIVE, "exchange_parts": 2, "keep_weights": True},
    "`selective`, 4 parts, weights kept": {**_SELECTIVE, "exchange_parts": 4, "keep_weights": True},
}


def ideas_table() -> str:
    """What each idea of the fast step gives at the design point, alone and together, with expert parallelism and without."""
    usual = shipped.chosen(shipped.named(DESIGN_POINT))
    work = usual.plan.work
    head = ["design point", *(f"{what}, EP {ep}" for ep in (work.ep, 1) for what in ("step, s", "MFU", "peak GiB"))]
    rows = []
    for name, changes in IDEAS.items():
        row = [name]
        for ep in (work.ep, 1):
            if ep == 1 and changes["exchange_parts"] > 1:
                row += ["-", "-", "-"]
                continue
            choice = replace(usual.choice, ep=ep, **changes)
            plan = planned_choice(work.shape, work.cluster, RunFacts(), Budget(), work.ds.train_batch_size, choice).plan
            time = [f"{plan.expected.step_s:.2f}", f"{plan.mfu(EXPECTED):.1%}"] if plan.fits else ["-", "-"]
            row += [*time, f"{plan.memory.peak_gib:.1f}"]
        rows.append(row)
    return markdown_table(head, rows)


def _key(candidate: Candidate) -> tuple[int, int]:
    work = candidate.plan.work
    return work.ds.zero_optimization.stage, work.ep


def _figures(candidate: Candidate) -> list[str]:
    step = f"{candidate.step_s:.2f}" if candidate.fits else "-"
    peak, exposed = candidate.plan.memory.peak_gib, candidate.plan.expected.exposed_share
    return [step, f"{peak:.1f}", f"{exposed:.1%}" if candidate.fits else "-"]


def megatron_table() -> str:
    """The design point beside the fastest of Megatron-Core that fits the same GPUs, by the planner's own kernels and links."""
    plan = design_point()
    work, alone = plan.work, shipped.fastest(shipped.named(DESIGN_POINT).model, GPU, plan.work.ranks, NETWORK, plan.work.ds.train_batch_size, 1)  # fmt: skip
    steps = [(f"this recipe: {c.name}", c.step_s) for c in (shipped.chosen(shipped.named(DESIGN_POINT)), alone)]
    steps += [(name, time.step_s) for name, _, time in megatron_core(work.shape, work.cluster, work.run, work.ds.train_batch_size)]  # fmt: skip
    rows = []
    for name, step_s in steps:
        rows.append([name, f"{step_s:.2f}", f"{plan.mfu(EXPECTED) * plan.expected.step_s / step_s:.1%}", f"{step_s / steps[0][1] - 1:+.0%}"])  # fmt: skip
    return markdown_table(["design point", "step, s", "MFU", "against a100_256"], rows)


def scaling_table() -> str:
    """More GPUs at the same model: batch, what is gathered and exposed, failures, and the cost of a token."""
    base, model = design_point(), shipped.named(DESIGN_POINT).model
    rows = []
    for gpus, per_rank in SCALED:
        plan = shipped.fastest(model, GPU, gpus, NETWORK, gpus * per_rank, base.work.ep).plan
        network = sum(s for c, s in plan.expected.collectives_s.items() if plan.link_of(c) == "network")
        ratio = plan.cost(EXPECTED).usd / base.cost(EXPECTED).usd
        rows.append(
            [
                f"{gpus:,}", f"{plan.work.tokens_per_step / 1e6:.1f}M",
                f"{plan.work.ds.train_micro_batch_size_per_gpu} x {plan.work.accumulation}",
                f"{plan.expected.compute_s:.2f}", f"{network:.2f}", f"{plan.expected.exposed_share:.1%}",
                f"{plan.expected.straggler_s / plan.expected.step_s:.1%}", f"{plan.reliability.mtbf_s / 86_400:.1f}",
                f"{plan.reliability.interval_s / 60:.0f}", goodput_range(plan),
                f"{plan.cost(EXPECTED).days:.1f}", f"{ratio:.2f}",
            ]
        )  # fmt: skip
    head = [
        "GPUs", "batch, tokens", "micro-batch", "computation, s", "network, s", "exposed", "stragglers",
        "days between failures", "minutes between checkpoints", "goodput", "days for 1T", "cost of a token",
    ]  # fmt: skip
    return markdown_table(head, rows)


def compiled_table() -> str:
    """What compute.compile is planned to change for each shipped ds_config."""
    rows = []
    for name, (model, plan) in shipped.plans().items():
        work = plan.work
        eager = Plan(replace(work, run=replace(work.run, compile=False)))
        before, after = (sum(saved_bytes_per_token(w, moe=True).values()) / 1024 for w in (eager.work, work))
        rows.append(
            [
                f"`{name}.json`, {model}", f"{eager.expected.step_s:.2f}", f"{plan.expected.step_s:.2f}",
                f"{plan.expected.step_s / eager.expected.step_s - 1:+.0%}", f"{eager.mfu(EXPECTED):.1%}",
                f"{plan.mfu(EXPECTED):.1%}", f"{before:.0f}", f"{after:.0f}", f"{eager.memory.peak_gib:.1f}",
                f"{plan.memory.peak_gib:.1f}",
            ]
        )  # fmt: skip
    head = [
        "planned", "step, s", "compiled", "change", "MFU", "compiled", "KiB a token and MoE layer", "compiled",
        "peak GiB", "compiled",
    ]  # fmt: skip
    return markdown_table(head, rows)


def ds_configs_table() -> str:
    """The shipped ds_configs: what is planned of each, and what it is for."""
    reasons = "\n".join(f"- `{s.name}.json`: {s.why}{_against_usual(s)}." for s in shipped.SHIPPED)
    return f"{clusters_table(shipped.plans())}\n\n{reasons}"


def _against_usual(s: shipped.Shipped) -> str:
    """Of a file beside the usual one: both steps, on the network of the file and on half of it."""
    if not s.beside:
        return ""
    own, usual = shipped.chosen(s).plan, shipped.chosen(shipped.named(s.beside)).plan
    saved = f"; {own.expected.step_s:.2f} s a step instead of {usual.expected.step_s:.2f} of `{s.beside}.json`"
    if own.work.cluster.nodes == 1:
        return saved
    slower = [on_half_the_network(plan).expected.step_s for plan in (own, usual)]
    return f"{saved}, and with half of the network {slower[0]:.2f} instead of {slower[1]:.2f}"


TABLES = {
    "ds_configs": ds_configs_table,
    "compiled": compiled_table,
    "networks": networks_table,
    "alternatives": alternatives_table,
    "ideas": ideas_table,
    "megatron": megatron_table,
    "scaling": scaling_table,
    "shapes": shapes_table,
    "phases": phases_table,
    "long_context": long_context_table,
    "reliability": reliability_tables,
}
