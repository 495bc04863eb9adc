"""Phases of a run as a table for a terminal, and what docs/design.md says of the flagship's phases and of long sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipe.base.ds_config import load_ds_config
from recipe.base.hardware import GIB, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import load_run_config
from recipe.base.tables import aligned_rows, markdown_table, rounded_count
from recipe.planner.calibration import Calibration, describe_calibration
from recipe.planner.memory import mask_bytes, masked_layer_bytes
from recipe.planner.phases import PhasePlan, plan_phases, total_cost
from recipe.planner.plan import Plan, with_kept
from recipe.planner.search import shipped
from recipe.planner.tables.report import goodput_range
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC, RANGE_CLAIMS
from recipe.planner.workload import RunFacts, Workload

HEAD = (
    "phase", "tokens", "length", "steps", "batch: tokens", "sequences", "micro x acc", "peak GiB", "step s", "MFU", "days", "kUSD",
)  # fmt: skip


def phase_rows(planned: Sequence[PhasePlan]) -> list[list[str]]:
    """A row for each phase, and one of all together."""
    rows = [_row(p) for p in planned]
    cost = total_cost(planned)
    total = ["all", rounded_count(sum(p.tokens for p in planned)), "", f"{sum(p.phase.steps for p in planned):,}"]
    return [*rows, [*total, *[""] * 6, f"{cost.days:.2f}", f"{cost.usd / 1000:,.1f}"]]


def _row(p: PhasePlan) -> list[str]:
    phase, plan, cost = p.phase, p.plan, p.plan.cost(EXPECTED)
    return [
        phase.name, rounded_count(p.tokens), f"{phase.run.data.seq_length:,}", f"{phase.steps:,}", rounded_count(phase.tokens_per_step),
        f"{phase.ds.train_batch_size:,}", f"{phase.ds.train_micro_batch_size_per_gpu} x {plan.work.accumulation}",
        f"{plan.memory.peak_gib:.1f} of {plan.usable_gib:.1f}", f"{plan.expected.step_s:.2f}", f"{plan.mfu(EXPECTED):.1%}",
        f"{cost.days:.2f}", f"{cost.usd / 1000:,.1f}",
    ]  # fmt: skip


def describe_phases(planned: Sequence[PhasePlan], calibration: Calibration | None = None) -> str:
    """For a terminal: the table, how far the totals may be off, and with which measured constants it was planned."""
    lines = aligned_rows([list(HEAD), *phase_rows(planned)])
    low, mid, high = (total_cost(planned, assumed) for assumed in (OPTIMISTIC, EXPECTED, CONSERVATIVE))
    work = planned[0].plan.work
    price = planned[0].plan.usd_per_gpu_hour
    measured = [] if calibration is None else ["", *describe_calibration(calibration, work.cluster)]
    return "\n".join([
        f"cluster     {work.ranks:,} x {work.cluster.accelerator.name}, ZeRO-{work.ds.zero_optimization.stage}, experts over {work.ep} ranks",
        *measured,
        "",
        *lines,
        "",
        f"time        {mid.days:.1f} days ({low.days:.1f} to {high.days:.1f}), checkpoints and failures included; {RANGE_CLAIMS}",
        f"goodput     {goodput_range(planned[0].plan)}",
        f"cost        {mid.gpu_hours:,.0f} GPU-hours ({low.gpu_hours:,.0f} to {high.gpu_hours:,.0f}), "
        f"{mid.usd:,.0f} USD ({low.usd:,.0f} to {high.usd:,.0f}) at {price:.2f} a GPU-hour",
    ])  # fmt: skip


FLAGSHIP_RUN = shipped.ROOT / "recipe" / "configs" / "runs" / "pretrain_30b.yaml"
FLAGSHIP_DS_CONFIG = "a100_256"


def flagship_phases(name: str, overrides: Sequence[str] = ()) -> tuple[PhasePlan, ...]:
    """The flagship's run config, with keys as `--set` has them, and a shipped ds_config."""
    s, run = shipped.named(name), load_run_config(FLAGSHIP_RUN, list(overrides))
    ds, ds_raw = load_ds_config(s.path)
    phases = resolve_phases(run, load_model_shape(shipped.MODELS / s.model), ds, ds_raw, path=FLAGSHIP_RUN)
    return plan_phases(phases, cluster_of(s.gpu, s.gpus, s.interconnect))


def phases_table() -> str:
    """The flagship's phases at the design point; and what its ramp and its long phases cost with each ds_config of its model."""
    head = [*HEAD[:-2], "days", "kUSD"]
    return f"{markdown_table(head, phase_rows(flagship_phases(FLAGSHIP_DS_CONFIG)))}\n\n{_by_ds_config()}"


def _by_ds_config() -> str:
    model = shipped.named(FLAGSHIP_DS_CONFIG).model
    rows = []
    for s in shipped.SHIPPED:
        if s.model == model:
            planned = flagship_phases(s.name)
            stable = next(p for p in planned if p.phase.name == "stable")
            total = total_cost(planned)
            parts = [[p for p in planned if p.phase.name.startswith(kind)] for kind in ("ramp", "long_32k", "long_64k")]
            costs = [f"{total_cost(part).usd / 1000:.1f}, {_as_stable(part, stable) / 1000:.1f}" for part in parts]
            rows.append([f"`{s.name}.json`", f"{total.days:.1f}", f"{total.usd / 1000:,.0f}", *costs])
    head = [
        "pretrain_30b.yaml with",
        "days",
        "kUSD",
        *(f"{what}: kUSD, its tokens in `stable`" for what in ("ramp", "32k", "64k")),
    ]
    return markdown_table(head, rows)


def _as_stable(part: Sequence[PhasePlan], stable: PhasePlan) -> float:
    """What the tokens of these phases would cost in the stable one."""
    return sum(p.tokens for p in part) / stable.tokens * stable.plan.cost(EXPECTED).usd


@dataclass(frozen=True)
class LongRun:
    """Sequences of a length on the design point's ranks, one a rank, with what is changed of its ds_config."""

    length: int
    attention: str = "flash_attention_2"
    gathered_twice: bool = False  # weights are not kept from the forward to the backward pass
    parts: int | None = None  # of an exchange; None: the ds_config's
    document_tokens: int | None = None

    @property
    def plan(self) -> Plan:
        """With as many results kept as fill the memory."""
        s = shipped.named(FLAGSHIP_DS_CONFIG)
        ds, _ = load_ds_config(s.path)
        layer = ds.zero_optimization.reduce_bucket_size  # the size of one, by which ds_writer.py sets the bounds
        reuse = {"stage3_max_live_parameters": 3 * layer, "stage3_max_reuse_distance": 2 * layer}
        zero = ds.zero_optimization.model_copy(update=reuse if self.gathered_twice else {})
        parts = ds.recipe.exchange_parts if self.parts is None else self.parts
        ds = ds.model_copy(update={
            "train_batch_size": ds.world_size, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
            "zero_optimization": zero, "recipe": ds.recipe.model_copy(update={"exchange_parts": parts}),
        })  # fmt: skip
        shape = load_model_shape(shipped.MODELS / s.model)
        shape = shape.model_copy(update={"max_position_embeddings": max(self.length, shape.max_position_embeddings)})
        facts = RunFacts(
            self.length,
            "selective",
            attention=self.attention,
            document_attention=True,
            document_tokens=self.document_tokens,
        )
        work = Workload(shape, cluster_of(s.gpu, s.gpus, s.interconnect), ds, facts)
        return Plan(with_kept(work, Plan(work).kept_gib_that_fills()))


LENGTHS = (32_768, 65_536, 131_072)
DOCUMENT_TOKENS = 8_192
VARIANTS: dict[str, dict[str, Any]] = {
    "`flash_attention_2`": {},
    "`sdpa`, with its mask": {"attention": "sdpa"},
    "`flash_attention_2`, 8 parts, weights gathered twice": {"parts": 8, "gathered_twice": True},
}


def long_context_table() -> str:
    """Long sequences without context parallelism: whether one fits a rank, and what its tokens cost."""
    usual = shipped.chosen(shipped.named(FLAGSHIP_DS_CONFIG)).plan
    head = [
        "one sequence of", "attention", "peak GiB, nothing kept", "below usable", "of it masks", "kept GiB that fill", "step s",
        "cost of a token over 4k's", f"the same, documents of {DOCUMENT_TOKENS:,}",
    ]  # fmt: skip
    rows = []
    for length in LENGTHS:
        for name, changes in VARIANTS.items():
            run = replace(LongRun(length), **changes)
            rows.append(_long_row(name, run, usual))
    chunk = min(usual.work.run.loss_chunk_tokens, LENGTHS[-1]) * usual.work.shape.vocab_size * 4 / GIB
    whole = ", ".join(f"{length * usual.work.shape.vocab_size * 4 / GIB:.0f}" for length in LENGTHS)
    logits = (
        f"Logits and their gradient are {chunk:.1f} GiB, of a chunk of {usual.work.run.loss_chunk_tokens:,} tokens; of whole sequences "
        f"they would be {whole} GiB."
    )
    return f"{markdown_table(head, rows, left=2)}\n\n{logits}"


def _long_row(name: str, run: LongRun, usual: Plan) -> list[str]:
    plan = run.plan
    empty = Plan(with_kept(plan.work, 0.0))
    masks = (mask_bytes(plan.work) + masked_layer_bytes(plan.work)) / GIB
    time = ["-"] * 4
    if plan.fits:
        within = replace(run, document_tokens=DOCUMENT_TOKENS).plan
        costs = [_token_s(p) / _token_s(usual) for p in (plan, within)]
        time = [f"{plan.work.ds.recipe.kept_gib:g}", f"{plan.expected.step_s:.1f}", *(f"{cost:.2f}" for cost in costs)]
    return [
        f"{run.length:,}", name, f"{empty.memory.peak_gib:.1f}", f"{plan.usable_gib - empty.memory.peak_gib:+.1f}",
        f"{masks:.1f}" if masks else "-", *time,
    ]  # fmt: skip


def _token_s(plan: Plan) -> float:
    return plan.expected.step_s / plan.work.tokens_per_step
