"""One workload's plan: memory, collectives, time with its range, checkpoints and money; or why it cannot work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from recipe.base.hardware import GIB
from recipe.base.reliability import CONDITIONS, NOTHING_KNOWN, Conditions, OwnCluster
from recipe.planner.communication import Collective
from recipe.planner.cost import Cost, Reliability, Reshard, checkpoint_bytes, cost_of, reliability, reshard
from recipe.planner.hardware_flops import hardware_flops_per_token
from recipe.planner.kept import EVERYTHING, FILL_IMBALANCE, KEEPABLE, kept_bytes, rows_of
from recipe.planner.memory import FRAGMENTATION, MemoryPlan, plan_memory
from recipe.planner.timing.links import Links
from recipe.planner.timing.timeline import (
    CONSERVATIVE,
    EXPECTED,
    RANGE,
    Assumptions,
    StepTime,
    assumed_of,
    step_time,
)
from recipe.planner.workload import Workload

USABLE = 0.91  # of a GPU's memory: what fragments over weeks, and evaluation and checkpoints, need room
# Of a GPU's memory, up to which selective recompute keeps results. The last 12 GiB of 80 are worth 0.15 s of an 8 s step,
# these 4 less than a percent; memory fragments over weeks, and an attempt that runs out of it costs minutes.
FILLED = USABLE - 0.05
KEPT_STEP_GIB = 0.5  # a budget is a multiple of it
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Budget:
    """What is to be trained, at what price, and what is known of the cluster's failures and storage."""

    tokens: float = 1e12
    usd_per_gpu_hour: float | None = None  # None: the list price of the hardware table
    own: OwnCluster = NOTHING_KNOWN


@dataclass(frozen=True)
class Keys:
    """What messages call that which is to be changed: keys of the files and flags, or those of a phase of the run config."""

    seq_length: str = "--seq"
    recompute: str = "compute.recompute"
    kept_gib: str = "recipe.kept_gib"
    micro_batch: str = "train_micro_batch_size_per_gpu {micro} and gradient_accumulation_steps {accumulation}"
    recompute_flag: str = " (--recompute {mode})"


RUN_KEYS = Keys(seq_length="data.seq_length", recompute_flag="")


def phase_keys(number: int) -> Keys:
    """Those of a phase of the run config; a phase's accumulation follows from its micro-batch."""
    phase = f"phases.{number}"
    return Keys(
        f"{phase}.data.seq_length",
        f"{phase}.compute.recompute",
        f"{phase}.kept_gib",
        f"{phase}.micro_batch {{micro}}",
        "",
    )


@dataclass(frozen=True)
class Plan:
    """All that is planned of a workload. The fields are computed when they are asked for."""

    work: Workload
    budget: Budget = Budget()
    keys: Keys = Keys()

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.work, self.work.run.imbalance or CONSERVATIVE.imbalance)

    def time(self, assumed: Assumptions) -> StepTime:
        """Of a step, under what was assumed and measured."""
        if assumed.name not in self._times:
            self._times[assumed.name] = step_time(self.work, self.assumed(assumed))
        return self._times[assumed.name]

    def assumed(self, assumed: Assumptions) -> Assumptions:
        """With the imbalance of a run and the efficiency of a calibrated GPU, where they were measured."""
        imbalance = self.work.run.imbalance or assumed.imbalance
        return replace(assumed_of(assumed, self.work.cluster.accelerator), imbalance=imbalance)

    @cached_property
    def _times(self) -> dict[str, StepTime]:
        return {}

    @cached_property
    def reliabilities(self) -> dict[str, Reliability]:
        """By the name of what was assumed."""
        state = checkpoint_bytes(self.work.architecture.total_parameters, self.work.ds.zero_optimization.stage)
        return {name: reliability(self.work.cluster, state, self._conditions(name)) for name in CONDITIONS}

    @property
    def reliability(self) -> Reliability:
        return self.reliabilities[EXPECTED.name]

    def reshard(self, assumed: Assumptions) -> Reshard:
        """To another number of ranks."""
        stage, parameters = self.work.ds.zero_optimization.stage, self.work.architecture.total_parameters
        return reshard(self.work.cluster, parameters, stage, self._conditions(assumed.name))

    def _conditions(self, name: str) -> Conditions:
        """Published ones, with what is known of the own cluster."""
        return self.budget.own.applied_to(CONDITIONS[name])

    @property
    def expected(self) -> StepTime:
        return self.time(EXPECTED)

    @property
    def usd_per_gpu_hour(self) -> float:
        given = self.budget.usd_per_gpu_hour
        return self.work.cluster.accelerator.usd_per_hour if given is None else given

    def cost(self, assumed: Assumptions, tokens: float | None = None) -> Cost:
        """Of the budget's tokens, or of another number of them."""
        step = self.time(assumed).step_s
        share = self.reliabilities[assumed.name].goodput
        return cost_of(self.work, self.budget.tokens if tokens is None else tokens, step, share, self.usd_per_gpu_hour)

    def tokens_per_s_per_gpu(self, assumed: Assumptions) -> float:
        return self.work.tokens_per_step / self.time(assumed).step_s / self.work.ranks

    def mfu(self, assumed: Assumptions) -> float:
        """Model FLOPs over the peak's; recompute not counted."""
        flops = self.work.shape.training_flops_per_token(self.work.run.attended_tokens)
        return self.tokens_per_s_per_gpu(assumed) * flops / self.work.cluster.accelerator.bf16_flops

    def hfu(self, assumed: Assumptions) -> float:
        """Hardware FLOPs over the peak's; recompute counted."""
        run = self.work.run
        flops = hardware_flops_per_token(self.work.shape, run.attended_tokens, run.recompute, self.work.kept)
        return self.tokens_per_s_per_gpu(assumed) * flops / self.work.cluster.accelerator.bf16_flops

    @property
    def usable_gib(self) -> float:
        return USABLE * self.work.cluster.accelerator.memory_gib

    def link_of(self, c: Collective) -> str:
        return Links(self.work.cluster).link_of(c.group)

    def problems(self) -> list[str]:
        """Why it cannot work on these GPUs, each with what to change; empty when it can."""
        work = self.work
        problems = work.ds.problems_with(work.shape, work.cluster.gpus)
        if work.run.seq_length > work.shape.max_position_embeddings:
            problems.append(
                f"sequences of {work.run.seq_length} exceed the model's max_position_embeddings "
                f"{work.shape.max_position_embeddings}; lower {self.keys.seq_length}"
            )
        return problems or self._memory_problems()

    @property
    def fits(self) -> bool:
        """Whether its peak is within what is usable of a GPU."""
        return self.memory.peak_gib <= self.usable_gib

    def kept_gib_that_fills(self, share: float = FILLED) -> float:
        """The largest `recipe.kept_gib` of use with which the peak is within a share of the GPU's memory.

        What is kept is there from the forward pass to the backward pass, and its bytes are those of the budget: no trying.
        """
        memory = Plan(with_kept(self.work, 0.0)).memory if self.work.kept.layers else self.memory
        used = max(sum(memory.at(moment).values()) for moment in memory.passing if moment != "optimizer step")
        room = (share * self.work.cluster.accelerator.memory_gib - used) / (1 + FRAGMENTATION)
        if self.work.ep > 1:  # a budget counts the bytes of this imbalance
            room /= max(1.0, memory.imbalance / FILL_IMBALANCE)
        steps = min(math.floor(room / KEPT_STEP_GIB), math.ceil(self._keepable_gib / KEPT_STEP_GIB))
        return max(0, steps) * KEPT_STEP_GIB

    @property
    def _keepable_gib(self) -> float:
        """Of all layers, so that none is recomputed, as a budget counts them."""
        work = self.work
        rows = rows_of(work.shape, tokens=work.tokens, ep_size=work.ep, imbalance=FILL_IMBALANCE)
        layers = {False: work.shape.first_k_dense_replace, True: work.shape.num_moe_layers}
        kept = (
            count * kept_bytes(work.shape, name, rows, moe=moe, element=work.element, compiled=work.run.compile)
            for moe, count in layers.items()
            for name in (*KEEPABLE, EVERYTHING)
        )
        return sum(kept) / GIB

    def _memory_problems(self) -> list[str]:
        if self.fits:
            return []
        return [
            f"needs {self.memory.peak_gib:.1f} GiB in the {self.memory.peak_moment}, but {self.usable_gib:.1f} of the "
            f"{self.work.cluster.accelerator.memory_gib:.1f} GiB of a {self.work.cluster.accelerator.name} are usable; "
            f"{self._what_fits()}"
        ]

    def _what_fits(self) -> str:
        """The smallest change of the files that makes it fit; more than the files where none does."""
        for words, work in self._changes():
            if Plan(work, self.budget).fits and not work.ds.problems_with(work.shape, work.ranks):
                return f"set {' and '.join(words)}"
        masked = ", an attention without masks (compute.attention)" if self.work.run.masked else ""
        return f"no smaller micro-batch, compute.recompute or ZeRO-3 is enough: use more GPUs, shorter sequences{masked} or a smaller model"

    def _changes(self) -> Iterator[tuple[list[str], Workload]]:
        """Smaller micro-batches as the files are, then with recompute, then with ZeRO-3, then with both.

        With selective recompute each keeps what fits, where less of it fits than the ds_config has.
        """
        work, ds = self.work, self.work.ds
        micro_batch = ds.train_micro_batch_size_per_gpu
        per_rank = micro_batch * ds.gradient_accumulation_steps
        recomputes = ("none", "selective") if work.run.recompute == "none" else (work.run.recompute,)
        stages = sorted({ds.zero_optimization.stage, 3})
        sizes = (micro_batch, *(m for m in MICRO_BATCHES if m < micro_batch and per_rank % m == 0))
        for stage, recompute, size in itertools.product(stages, recomputes, sizes):
            zero = ds.zero_optimization.model_copy(update={"stage": stage})
            batch = {"train_micro_batch_size_per_gpu": size, "gradient_accumulation_steps": per_rank // size}
            changed = ds.model_copy(update={"zero_optimization": zero, **batch})
            other, kept_gib = replace(work, ds=changed, run=replace(work.run, recompute=recompute)), None
            if recompute == "selective" and not Plan(other).fits:
                kept_gib = Plan(other).kept_gib_that_fills()
                other = with_kept(other, kept_gib)
            if other != work:
                yield list(_words_of_change(work, other, kept_gib, self.keys)), other

    def as_dict(self) -> dict[str, Any]:
        """Everything, for --json."""
        work = self.work
        collectives = [
            {
                "op": c.op, "purpose": c.purpose, "phase": c.phase, "ranks": c.group.ranks, "link": self.link_of(c),
                "dtype": c.dtype, "bytes": c.bytes, "calls": c.calls, "seconds": round(s, 6),
            }
            for c, s in self.expected.collectives_s.items()
        ]  # fmt: skip
        return {
            "gpus": work.ranks,
            "gpu": work.cluster.accelerator.name,
            "network_gbit_per_s_per_node": work.cluster.network_bytes_per_s * 8 / 1e9,
            "zero_stage": work.ds.zero_optimization.stage,
            "autoep_size": work.ep,
            "micro_batch": work.ds.train_micro_batch_size_per_gpu,
            "gradient_accumulation_steps": work.accumulation,
            "recompute": work.run.recompute,
            "kept_gib": work.ds.recipe.kept_gib,
            "kept_layers": dict(work.kept.layers),
            "exchange_parts": work.exchange_parts,
            "compile": work.run.compile,
            "seq_length": work.run.seq_length,
            "tokens_per_step": work.tokens_per_step,
            "parameters": sum(work.shape.parameters().values()),
            "active_parameters": sum(work.shape.active_parameters().values()),
            "memory_gib": {moment: self.memory.at(moment) for moment in self.memory.passing},
            "peak_gib": self.memory.peak_gib,
            "peak_moment": self.memory.peak_moment,
            "usable_gib": self.usable_gib,
            "collectives": collectives,
            "time": {a.name: self._times_dict(a) for a in RANGE},
            "goodput": {
                of: self.reliabilities[a.name].goodput for of, a in zip(("high", "expected", "low"), RANGE, strict=True)
            },
            "reliability": {a.name: self.reliabilities[a.name].as_dict() for a in RANGE},
            "reshard": {a.name: asdict(self.reshard(a)) for a in RANGE},
            "usd_per_gpu_hour": self.usd_per_gpu_hour,
            "problems": self.problems(),
        }

    def _times_dict(self, assumed: Assumptions) -> dict[str, Any]:
        time = self.time(assumed)
        return {
            "assumptions": asdict(assumed_of(assumed, self.work.cluster.accelerator)),
            "step_s": time.step_s,
            "compute_s": time.compute_s,
            "recompute_s": time.recompute_s,
            "optimizer_s": time.optimizer_s,
            "exposed_s": time.exposed_s,
            "exposed_share": time.exposed_share,
            "contention_s": time.contention_s,
            "straggler_s": time.straggler_s,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu(assumed),
            "mfu": self.mfu(assumed),
            "hfu": self.hfu(assumed),
            **asdict(self.cost(assumed)),
        }


def on_half_the_network(plan: Plan) -> Plan:
    """The same where the network between nodes gives half of what it should."""
    cluster = plan.work.cluster
    slower = replace(cluster, network_bytes_per_s=cluster.network_bytes_per_s / 2)
    return Plan(replace(plan.work, cluster=slower), plan.budget)


def with_kept(work: Workload, gib: float) -> Workload:
    """The workload with another `recipe.kept_gib`."""
    return replace(work, ds=work.ds.model_copy(update={"recipe": work.ds.recipe.model_copy(update={"kept_gib": gib})}))


def _words_of_change(work: Workload, other: Workload, kept_gib: float | None, keys: Keys) -> Iterator[str]:
    """What to set where, to make one workload the other."""
    mode, micro = other.run.recompute, other.ds.train_micro_batch_size_per_gpu
    if mode != work.run.recompute:
        yield f"{keys.recompute} to {mode}{keys.recompute_flag.format(mode=mode)}"
    if kept_gib is not None and kept_gib != work.ds.recipe.kept_gib:
        yield f"{keys.kept_gib} {kept_gib:g}"
    if other.ds.zero_optimization.stage != work.ds.zero_optimization.stage:
        yield f"zero_optimization.stage {other.ds.zero_optimization.stage}"
    if micro != work.ds.train_micro_batch_size_per_gpu:
        yield keys.micro_batch.format(micro=micro, accumulation=other.accumulation)
