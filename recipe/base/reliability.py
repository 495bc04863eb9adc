"""What published clusters say of failures, restarts and storage: a range of three, and what a user knows of the own cluster.

Interruptions are those that end a run. Others that agree with the range: BLOOM, 1 to 2 failed GPUs a week of about 400, so
5e-4 a GPU-day (huggingface.co/blog/bloom-megatron-deepspeed); RSC-1, 6.50 failures in 1,000 node-days, so 8e-4 (arXiv
2410.21680); OPT-175B, about 2 machines a day of 1,024 A100, so 2e-3 (facebookresearch/metaseq, OPT/chronicles/final_update.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

GB = 1e9


@dataclass(frozen=True)
class Conditions:
    """How often a cluster fails, how long a restart takes, and how fast its storage is."""

    name: str
    failures_per_gpu_day: float
    noticed_s: float  # from the failure to the end of all ranks
    # From there to the first step: nodes, processes, NCCL, engine; without compiling and without reading.
    start_s: float
    node_write_bytes_per_s: float
    node_read_bytes_per_s: float
    storage_write_bytes_per_s: float  # of the whole file system
    storage_read_bytes_per_s: float

    def write_bytes_per_s(self, nodes: int) -> float:
        return min(nodes * self.node_write_bytes_per_s, self.storage_write_bytes_per_s)

    def read_bytes_per_s(self, nodes: int) -> float:
        return min(nodes * self.node_read_bytes_per_s, self.storage_read_bytes_per_s)


# The first compiled step with nothing compiled before, measured on an H200 (docs/performance.md).
COMPILE_S = 64.0

OPTIMISTIC = Conditions(
    "optimistic",
    # RSC-2: 2.34 failures in 1,000 node-days of 8 A100 (arXiv 2410.21680)
    failures_per_gpu_day=2.34 / 1000 / 8,
    noticed_s=2.0,  # a rank that is killed, measured (docs/reliability.md, what each fault costs)
    start_s=5 * 60.0,  # restarts take 5 to 20 minutes on RSC-1 and RSC-2 (arXiv 2410.21680)
    # Llama 3's file system: 7 TB/s at its peak, 2 TB/s sustained (arXiv 2407.21783, section 3.3.1); a node's is that peak over
    # its 2,048 nodes. Reading is assumed to be as fast.
    node_write_bytes_per_s=7000 / 2048 * GB,
    node_read_bytes_per_s=7000 / 2048 * GB,
    storage_write_bytes_per_s=2000 * GB,
    storage_read_bytes_per_s=2000 * GB,
)
EXPECTED = Conditions(
    "expected",
    # 419 unexpected interruptions in 54 days on 16,384 H100 (Llama 3, arXiv 2407.21783, section 3.3.4)
    failures_per_gpu_day=419 / 54 / 16_384,
    noticed_s=2.0,
    start_s=11 * 60.0,  # median between an automatic restart and the next on 504 B200 (arXiv 2605.09370)
    # BLOOM wrote 2.3 TB in 40 s from 48 nodes (bigscience-workshop/bigscience, tr11-176B-ml/chronicles.md, 2022-03-18)
    node_write_bytes_per_s=2300 / 40 / 48 * GB,
    storage_write_bytes_per_s=2300 / 40 * GB,
    # 504 B200: restarts read at 21.5% of 700 GB/s (arXiv 2605.09370); a node's is that over 63 nodes
    node_read_bytes_per_s=0.215 * 700 / 63 * GB,
    storage_read_bytes_per_s=0.215 * 700 * GB,
)
CONSERVATIVE = Conditions(
    "conservative",
    # RSC-1: jobs of 1,024 A100 ran 7.9 hours between failures, measured (arXiv 2410.21680)
    failures_per_gpu_day=24 / 7.9 / 1024,
    noticed_s=900.0,  # each failure is a hang: `watch.no_progress_s` of the run config by default
    start_s=20 * 60.0,
    # 504 B200: checkpoints are written at 16.0% of 250 GB/s (arXiv 2605.09370). Reading is assumed to be no faster.
    node_write_bytes_per_s=0.16 * 250 / 63 * GB,
    node_read_bytes_per_s=0.16 * 250 / 63 * GB,
    storage_write_bytes_per_s=0.16 * 250 * GB,
    storage_read_bytes_per_s=0.16 * 250 * GB,
)
CONDITIONS = {conditions.name: conditions for conditions in (OPTIMISTIC, EXPECTED, CONSERVATIVE)}


@dataclass(frozen=True)
class OwnCluster:
    """What is known of the own cluster; None: the published range."""

    failures_per_gpu_day: float | None = None
    restart_s: float | None = None  # from the failure to the first step, with compiling, without reading the checkpoint
    node_bytes_per_s: float | None = None  # that a node writes and reads when all nodes do

    def applied_to(self, conditions: Conditions) -> Conditions:
        changed: dict[str, Any] = {}
        if self.failures_per_gpu_day is not None:
            changed["failures_per_gpu_day"] = self.failures_per_gpu_day
        if self.restart_s is not None:
            changed |= {"noticed_s": 0.0, "start_s": max(0.0, self.restart_s - COMPILE_S)}
        if self.node_bytes_per_s is not None:
            changed |= dict.fromkeys(("node_write_bytes_per_s", "node_read_bytes_per_s"), self.node_bytes_per_s)
            changed |= dict.fromkeys(("storage_write_bytes_per_s", "storage_read_bytes_per_s"), float("inf"))
        return replace(conditions, **changed)

    def problems(self) -> list[str]:
        """What cannot be, by the flags of launch/plan.py."""
        problems = []
        rate, restart, speed = self.failures_per_gpu_day, self.restart_s, self.node_bytes_per_s
        if rate is not None and not 0 <= rate <= 1:
            problems.append(
                f"--failures-per-gpu-day {rate:g} is not between 0 and 1; published clusters have 0.0003 to 0.003"
            )
        if restart is not None and not COMPILE_S <= restart < float("inf"):
            problems.append(f"--restart-s {restart:g} is less than the {COMPILE_S:g} s that compiling takes; give the seconds from a failure to the next step")  # fmt: skip
        if speed is not None and not 0 < speed < float("inf"):
            problems.append(
                f"--node-storage-gb-per-s {speed / GB:g} is not above 0; give the GB/s that a node writes while all write"
            )
        return problems


NOTHING_KNOWN = OwnCluster()
