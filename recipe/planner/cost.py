"""From the time of a step to days, GPU-hours and money: checkpoints, failures, and what is left as goodput; and resharding.

Failures arrive at a constant rate per GPU. After W seconds of work a checkpoint is written; a failure loses the work since the
last one, and a restart. The interval that loses least is Young's, sqrt(2 * stall * MTBF) (CACM 17(9), 1974), here in Daly's
higher-order form; what is lost is Daly's expected time, in which a restart can fail too (Future Generation Computer Systems
22(3), 2006).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from recipe.base.hardware import Cluster
from recipe.base.reliability import COMPILE_S, Conditions
from recipe.planner.workload import Workload

OPTIMIZER_BYTES = 12  # of a parameter in a checkpoint: fp32 master, two fp32 moments
WEIGHT_BYTES = 2  # bf16; a ZeRO-3 checkpoint has the master alone
BARRIER_S = 2.0  # of a checkpoint, whatever its size: until all ranks have written; assumed
LONGEST_INTERVAL_S = 86_400.0  # however seldom a cluster fails, a run saves once a day
LEAST_GOODPUT = 0.01  # below it a run does not get on; days and money stay finite
# SHA-256 by one core, read in order: measured on an AMD EPYC with SHA extensions, Python's hashlib.
SHA256_BYTES_PER_S = 1.36e9


@dataclass(frozen=True)
class Reliability:
    """Checkpoints and failures of a run."""

    stall_s: float  # of one checkpoint
    mtbf_s: float  # of the cluster
    restart_s: float  # from a failure to the next step
    interval_s: float  # of work between checkpoints
    goodput: float  # share of the time that is work which is not lost

    @property
    def lost_share(self) -> float:
        """Of the time: stalls, lost work, restarts."""
        return 1.0 - self.goodput

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: a cluster that never fails has no MTBF."""
        return asdict(self) | {"mtbf_s": None if math.isinf(self.mtbf_s) else self.mtbf_s}


@dataclass(frozen=True)
class Reshard:
    """What it takes to go on with another number of ranks (launch/reshard.py, on one host)."""

    read_bytes: float
    written_bytes: float
    host_memory_bytes: float  # of its largest process
    convert_s: float  # on one host
    load_s: float  # by all ranks, more than a load with as many ranks as before

    @property
    def seconds(self) -> float:
        return self.convert_s + self.load_s


@dataclass(frozen=True)
class Cost:
    """What a token budget takes."""

    days: float
    gpu_hours: float
    usd: float


def checkpoint_bytes(parameters: int, zero_stage: int) -> int:
    """Of a whole checkpoint, without an average of the weights."""
    return parameters * (OPTIMIZER_BYTES + (WEIGHT_BYTES if zero_stage < 3 else 0))


def reliability(cluster: Cluster, state_bytes: float, conditions: Conditions) -> Reliability:
    """The best checkpoint interval and what is left with it.

    Args:
        cluster: every node writes its share of the checkpoint, synchronously; reads it twice on a restart, to verify and to load.
        state_bytes: of the whole checkpoint.
    """
    stall = state_bytes / conditions.write_bytes_per_s(cluster.nodes) + BARRIER_S
    reading = 2 * state_bytes / conditions.read_bytes_per_s(cluster.nodes)
    restart = conditions.noticed_s + conditions.start_s + COMPILE_S + reading
    failures_per_s = conditions.failures_per_gpu_day * cluster.gpus / 86_400
    mtbf = 1 / failures_per_s if failures_per_s else math.inf
    interval = min(daly_interval_s(stall, mtbf), LONGEST_INTERVAL_S)
    return Reliability(stall, mtbf, restart, interval, max(LEAST_GOODPUT, goodput(interval, stall, restart, mtbf)))


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Daly's interval between checkpoints; the MTBF itself where a checkpoint takes longer than half of it."""
    if math.isinf(mtbf_s) or stall_s >= mtbf_s / 2:
        return mtbf_s
    root = math.sqrt(stall_s / (2 * mtbf_s))
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + root / 3 + stall_s / (2 * mtbf_s) / 9) - stall_s


def goodput(interval_s: float, stall_s: float, restart_s: float, mtbf_s: float) -> float:
    """Work over the time that is expected for it, MTBF * exp(restart / MTBF) * (exp((interval + stall) / MTBF) - 1)."""
    if math.isinf(mtbf_s):
        return interval_s / (interval_s + stall_s)
    segment = (interval_s + stall_s) / mtbf_s
    return interval_s / mtbf_s * math.exp(-restart_s / mtbf_s - segment) / -math.expm1(-segment)


def reshard(cluster: Cluster, parameters: int, zero_stage: int, conditions: Conditions) -> Reshard:
    """Bytes of launch/reshard.py over the storage of one host, and of the load by all hosts.

    Counted from recipe/checkpoints/universal.py and DeepSpeed 0.19.8's ds_to_universal: checksums of the checkpoint; the
    optimizer's files by processes; with ZeRO-3 once more all of them in one process, which copies out the experts, else their
    parts written and read again; the weights' files; checksums of the result. A load reads every file of the result on every
    node, once: the page cache serves its other ranks. All parameters are counted as experts, which nearly all are.
    """
    read_speed, write_speed = conditions.read_bytes_per_s(1), conditions.write_bytes_per_s(1)
    optimizer, whole = OPTIMIZER_BYTES * parameters, checkpoint_bytes(parameters, zero_stage)
    hashed = 2 * whole
    plainly_read = 2 * optimizer + (whole - optimizer)
    written = whole if zero_stage == 3 else whole + optimizer
    in_one_process = 2 * optimizer if zero_stage == 3 else whole / cluster.gpus
    convert = hashed / min(read_speed, SHA256_BYTES_PER_S) + plainly_read / read_speed + written / write_speed
    load = cluster.nodes * optimizer / conditions.read_bytes_per_s(cluster.nodes)
    return Reshard(hashed + plainly_read, written, in_one_process, convert, load)


def cost_of(work: Workload, tokens: float, step_s: float, goodput: float, usd_per_hour: float) -> Cost:
    """Wall-clock days, GPU-hours and price of `tokens` at `step_s` a step."""
    seconds = tokens / work.tokens_per_step * step_s / goodput
    hours = seconds / 3600 * work.cluster.gpus
    return Cost(seconds / 86_400, hours, hours * usd_per_hour)
