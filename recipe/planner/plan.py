"""One workload's plan: memory, collectives, time with its range, checkpoints and money; or why it cannot work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from recipe.planner.communication import Collective
from recipe.planner.cost import Cost, Reliability, cost_of, reliability
from recipe.planner.links import Links
from recipe.planner.memory import MemoryPlan, plan_memory
from recipe.planner.timeline import (
    CONSERVATIVE,
    EXPECTED,
    RANGE,
    Assumptions,
    StepTime,
    step_time,
)
from recipe.planner.workload import Workload

USABLE = 0.91  # of a GPU's memory: what fragments over weeks, and evaluation and checkpoints, need room
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Budget:
    """What is to be trained, and at what price."""

    tokens: float = 1e12
    usd_per_gpu_hour: float | None = None  # None: the list price of the hardware table


@dataclass(frozen=True)
class Plan:
    """All that is planned of a workload. The fields are computed when they are asked for."""

    work: Workload
    budget: Budget = Budget()

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.work, self.work.run.imbalance or CONSERVATIVE.imbalance)

    def time(self, assumed: Assumptions) -> StepTime:
        """Of a step; a measured imbalance takes the place of the assumed one."""
        if assumed.name not in self._times:
            imbalance = self.work.run.imbalance or assumed.imbalance
            self._times[assumed.name] = step_time(self.work, replace(assumed, imbalance=imbalance))
        return self._times[assumed.name]

    @cached_property
    def _times(self) -> dict[str, StepTime]:
        return {}

    @cached_property
    def reliability(self) -> Reliability:
        return reliability(self.work.cluster, self.work.architecture.total_parameters)

    @property
    def expected(self) -> StepTime:
        return self.time(EXPECTED)

    @property
    def usd_per_gpu_hour(self) -> float:
        given = self.budget.usd_per_gpu_hour
        return self.work.cluster.accelerator.usd_per_hour if given is None else given

    def cost(self, assumed: Assumptions) -> Cost:
        step = self.time(assumed).step_s
        return cost_of(self.work, self.budget.tokens, step, self.reliability.goodput, self.usd_per_gpu_hour)

    def tokens_per_s_per_gpu(self, assumed: Assumptions) -> float:
        return self.work.tokens_per_step / self.time(assumed).step_s / self.work.ranks

    def mfu(self, assumed: Assumptions) -> float:
        """Model FLOPs over the peak's; recompute not counted."""
        flops = self.work.shape.training_flops_per_token(self.work.run.seq_length)
        return self.tokens_per_s_per_gpu(assumed) * flops / self.work.cluster.accelerator.bf16_flops

    def hfu(self, assumed: Assumptions) -> float:
        """Hardware FLOPs over the peak's; recompute counted."""
        run = self.work.run
        flops = self.work.shape.hardware_flops_per_token(run.seq_length, recompute=run.recompute != "none")
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
                f"{work.shape.max_position_embeddings}; lower --seq"
            )
        return problems or self._memory_problems()

    @property
    def fits(self) -> bool:
        """Whether its peak is within what is usable of a GPU."""
        return self.memory.peak_gib <= self.usable_gib

    def _memory_problems(self) -> list[str]:
        if self.fits:
            return []
        return [
            f"needs {self.memory.peak_gib:.1f} GiB in the {self.memory.peak_moment}, but {self.usable_gib:.1f} of the "
            f"{self.work.cluster.accelerator.memory_gib:.1f} GiB of a {self.work.cluster.accelerator.name} are usable; "
            f"{self._what_fits()}"
        ]

    def _what_fits(self) -> str:
        ds = self.work.ds
        per_rank = ds.train_micro_batch_size_per_gpu * ds.gradient_accumulation_steps
        for micro_batch in MICRO_BATCHES:
            if micro_batch < ds.train_micro_batch_size_per_gpu and per_rank % micro_batch == 0:
                smaller = ds.model_copy(
                    update={
                        "train_micro_batch_size_per_gpu": micro_batch,
                        "gradient_accumulation_steps": per_rank // micro_batch,
                    }
                )
                other = Plan(Workload(self.work.shape, self.work.cluster, smaller, self.work.run), self.budget)
                if other.fits:
                    return (
                        f"set train_micro_batch_size_per_gpu {micro_batch} and gradient_accumulation_steps "
                        f"{per_rank // micro_batch}"
                    )
        if self.work.run.recompute == "none":
            return "set compute.recompute to non_reentrant (--recompute non_reentrant)"
        if ds.zero_optimization.stage < 3:
            return "set zero_optimization.stage 3"
        return "use more GPUs, shorter sequences or a smaller model"

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
            "checkpoint": asdict(self.reliability) | {"goodput": self.reliability.goodput},
            "usd_per_gpu_hour": self.usd_per_gpu_hour,
            "problems": self.problems(),
        }

    def _times_dict(self, assumed: Assumptions) -> dict[str, Any]:
        time = self.time(assumed)
        return {
            "assumptions": asdict(assumed),
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
