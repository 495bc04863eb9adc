"""The planner's tables of docs/design.md, docs/performance.md and ds_configs/README.md.

The design point on other networks, its alternatives, its way to 1,024 GPUs, what compiling changes, and the shipped ds_configs.
"""

from __future__ import annotations

from dataclasses import replace

from recipe.base.hardware import cluster_of
from recipe.base.tables import markdown_table
from recipe.planner.memory import saved_bytes_per_token
from recipe.planner.plan import Budget, Plan
from recipe.planner.search import shipped
from recipe.planner.search.search import Candidate, on_paper, search, why_it_lost
from recipe.planner.tables.report import clusters_table
from recipe.planner.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC
from recipe.planner.workload import RunFacts, Workload

DESIGN_POINT, GPU, NETWORK = "a100_256", "a100-80gb", "400g"
NETWORKS = {"200g": "200 Gb/s a node", "400g": "400 Gb/s a node", "8x200g": "200 Gb/s a GPU"}


def design_point(interconnect: str = NETWORK) -> Plan:
    """The plan of the shipped a100_256.json on another network."""
    work = shipped.chosen(shipped.named(DESIGN_POINT)).plan.work
    return Plan(Workload(work.shape, cluster_of(GPU, work.ranks, interconnect), work.ds, work.run))


def networks_table() -> str:
    """The design point's ds_config on slower and faster networks."""
    head = ["a100_256 with", "step, s", "exposed", "MFU", "HFU", "tokens/s/GPU", "days for 1T", "kUSD"]
    return markdown_table(head, [[name, *_costs(design_point(network))] for network, name in NETWORKS.items()])


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


def _key(candidate: Candidate) -> tuple[int, int]:
    work = candidate.plan.work
    return work.ds.zero_optimization.stage, work.ep


def _figures(candidate: Candidate) -> list[str]:
    step = f"{candidate.step_s:.2f}" if candidate.fits else "-"
    peak, exposed = candidate.plan.memory.peak_gib, candidate.plan.expected.exposed_share
    return [step, f"{peak:.1f}", f"{exposed:.1%}" if candidate.fits else "-"]


def scaling_table() -> str:
    """More GPUs at the same model: batch, what is gathered and exposed, failures, and the cost of a token."""
    base, model = design_point(), shipped.named(DESIGN_POINT).model
    rows = []
    for gpus, per_rank in ((256, 8), (512, 4), (512, 8), (1024, 2), (1024, 4), (1024, 8)):
        plan = shipped.fastest(model, GPU, gpus, NETWORK, gpus * per_rank, base.work.ep).plan
        network = sum(s for c, s in plan.expected.collectives_s.items() if plan.link_of(c) == "network")
        ratio = plan.cost(EXPECTED).usd / base.cost(EXPECTED).usd
        rows.append(
            [
                f"{gpus:,}", f"{plan.work.tokens_per_step / 1e6:.1f}M",
                f"{plan.work.ds.train_micro_batch_size_per_gpu} x {plan.work.accumulation}",
                f"{plan.expected.compute_s:.2f}", f"{network:.2f}", f"{plan.expected.exposed_share:.1%}",
                f"{plan.expected.straggler_s / plan.expected.step_s:.1%}", f"{plan.reliability.mtbf_s / 86_400:.1f}",
                f"{plan.reliability.interval_s / 60:.0f}", f"{plan.reliability.goodput:.1%}",
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
    reasons = "\n".join(f"- `{s.name}.json`: {s.why}." for s in shipped.SHIPPED)
    return f"{clusters_table(shipped.plans())}\n\n{reasons}"


TABLES = {
    "ds_configs": ds_configs_table,
    "compiled": compiled_table,
    "networks": networks_table,
    "alternatives": alternatives_table,
    "scaling": scaling_table,
}
