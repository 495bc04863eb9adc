"""From the time of a step to days, GPU-hours and money: checkpoints, failures, and what is left as goodput.

Failures arrive at a constant rate per node. A checkpoint every W seconds costs its stall; a failure costs W/2 of lost
work and a restart. The interval that minimises the sum is Young's, sqrt(2 * stall * MTBF) (CACM 17(9), 1974), here in
Daly's higher-order form (Future Generation Computer Systems 22(3), 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from recipe.base.hardware import GPUS_PER_NODE, Cluster
from recipe.planner.workload import Workload

# 419 unexpected interruptions in 54 days on 16,384 H100s, 2,048 nodes (Llama 3, arXiv 2407.21783, section 3.3.4)
NODE_MTBF_DAYS = 54 * 2048 / 419
RESTART_S = 900.0  # noticing, replacing a node, NCCL and DeepSpeed starting, loading; assumed
STORAGE_BYTES_PER_S = 1.0e9  # that one node writes to shared storage; assumed
STATE_BYTES_PER_PARAMETER = 14  # bf16 parameter, fp32 master, two fp32 moments


@dataclass(frozen=True)
class Reliability:
    """Checkpoints and failures of a run."""

    stall_s: float  # of one checkpoint
    mtbf_s: float  # of the cluster
    interval_s: float  # between checkpoints
    lost_share: float  # of the time: stalls, lost work, restarts

    @property
    def goodput(self) -> float:
        return 1.0 - self.lost_share


@dataclass(frozen=True)
class Cost:
    """What a token budget takes."""

    days: float
    gpu_hours: float
    usd: float


def reliability(cluster: Cluster, parameters: int) -> Reliability:
    """The best checkpoint interval and what is lost with it.

    Args:
        cluster: every node writes its share of the checkpoint, synchronously.
        parameters: of the whole model.
    """
    nodes = max(1, cluster.nodes)
    stall = parameters * STATE_BYTES_PER_PARAMETER / (nodes * STORAGE_BYTES_PER_S) + 2.0
    mtbf = NODE_MTBF_DAYS * 86_400 / (nodes * cluster.gpus_per_node / GPUS_PER_NODE)
    interval = daly_interval_s(stall, mtbf)
    lost = stall / (interval + stall) + (interval / 2 + RESTART_S) / mtbf
    return Reliability(stall, mtbf, interval, min(lost, 0.99))


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Daly's interval between checkpoints; the MTBF itself where a checkpoint takes longer than half of it."""
    if stall_s >= mtbf_s / 2:
        return mtbf_s
    root = math.sqrt(stall_s / (2 * mtbf_s))
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + root / 3 + stall_s / (2 * mtbf_s) / 9) - stall_s


def cost_of(work: Workload, tokens: float, step_s: float, goodput: float, usd_per_hour: float) -> Cost:
    """Wall-clock days, GPU-hours and price of `tokens` at `step_s` a step."""
    seconds = tokens / work.tokens_per_step * step_s / goodput
    hours = seconds / 3600 * work.cluster.gpus
    return Cost(seconds / 86_400, hours, hours * usd_per_hour)
