"""What a host must have to be good for a run, as tables of checks on the facts that launch/cluster/host_facts.py tells."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

CLOCK_S = 0.5  # beyond the time that asking takes
GPU_USED_MIB = 1024  # of another process
SHM_GIB, SHM_GPU_GIB = 0.25, 8.0  # the buffers of CPU ranks; NCCL's and pinned memory
NOFILE = 4096  # sockets of a thousand peers, shards and checkpoints
NO_ECC_ERRORS = ("0", "[N/A]")
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """What most hosts have, and what the run needs."""

    versions: dict[str, str]
    gpu: str
    driver: str
    with_gpus: bool
    needed_gib: float

    @property
    def shm_gib(self) -> float:
        return SHM_GPU_GIB if self.with_gpus else SHM_GIB


def expected_of(facts: Collection[Facts], needed_gib: float) -> Expected:
    """What the facts of all hosts say is usual."""
    gpus = [gpu for f in facts for gpu in f["gpus"]]
    names = sorted({name for f in facts for name in f["versions"]})
    return Expected(
        versions={name: most_common([version_of(f, name) for f in facts]) for name in names},
        gpu=most_common([gpu["name"] for gpu in gpus]),
        driver=most_common([gpu["driver_version"] for gpu in gpus]),
        with_gpus=bool(gpus),
        needed_gib=needed_gib,
    )


@dataclass(frozen=True)
class Check:
    """One comparison of a host's or a GPU's facts with what is expected, and the sentence where it fails."""

    name: str
    fails: Callable[[Facts, Expected], bool]
    sentence: Callable[[Facts, Expected], str]


HOST_CHECKS = (
    Check(
        "clock",
        lambda f, e: f["clock_s"] > CLOCK_S,
        lambda f, e: f"clock is off by {f['clock_s']:.1f} s; start chrony or ntpd",
    ),
    Check(
        "shared folder",
        lambda f, e: not f["seen_here"],
        lambda f, e: "what it writes to --folder is not seen here; mount the shared file system",
    ),
    Check(
        "room for checkpoints",
        lambda f, e: f["free_gib"] < e.needed_gib,
        lambda f, e: f"{f['free_gib']:.0f} GiB free in --folder, the run needs {e.needed_gib:.0f}; make room",
    ),
    Check(
        "shared memory",
        lambda f, e: f["shm_free_gib"] < e.shm_gib,
        lambda f, e: f"{f['shm_free_gib']:.2f} GiB free in /dev/shm; remove what killed runs left, or mount it larger",
    ),
    Check(
        "open files",
        lambda f, e: f["nofile"] < NOFILE,
        lambda f, e: f"ulimit -n is {f['nofile']}; raise it to {NOFILE} in limits.conf",
    ),
    Check(
        "locked memory",
        lambda f, e: f["infiniband"] and f["memlock"] != -1,
        lambda f, e: "ulimit -l is limited, which RDMA needs unlimited; set memlock in limits.conf",
    ),
)
# Of nvidia-smi's fields of a GPU, with its `number` on the host.
GPU_CHECKS = (
    Check(
        "model",
        lambda gpu, e: gpu["name"] != e.gpu,
        lambda gpu, e: f"GPU {gpu['number']} is a {gpu['name']}, the others are {e.gpu}",
    ),
    Check(
        "driver",
        lambda gpu, e: gpu["driver_version"] != e.driver,
        lambda gpu, e: f"driver {gpu['driver_version']}, the others have {e.driver}",
    ),
    Check(
        "memory in use",
        lambda gpu, e: float(gpu["memory.used"]) > GPU_USED_MIB,
        lambda gpu, e: f"GPU {gpu['number']} has {gpu['memory.used']} MiB in use; end the process that holds it",
    ),
    Check(
        "memory errors",
        lambda gpu, e: gpu["ecc.errors.uncorrected.volatile.total"] not in NO_ECC_ERRORS,
        lambda gpu, e: f"GPU {gpu['number']} has uncorrected memory errors; reset or replace it",
    ),
)


def judge(facts: Mapping[str, Facts], slots: Mapping[str, int], needed_gib: float) -> dict[str, list[str]]:
    """What is wrong with each host, by its facts; hosts without a fault have no entry."""
    expected = expected_of(list(facts.values()), needed_gib)
    problems = {host: problems_of(f, slots[host], expected) for host, f in facts.items()}
    return {host: reasons for host, reasons in problems.items() if reasons}


def problems_of(facts: Facts, slots: int, expected: Expected) -> list[str]:
    """What is wrong with one host: its versions, its GPUs, and the rest."""
    gpus = _problems_of_gpus(facts["gpus"], slots, expected) if expected.with_gpus else []
    rest = [check.sentence(facts, expected) for check in HOST_CHECKS if check.fails(facts, expected)]
    return [*_problems_of_versions(facts, expected), *gpus, *rest]


def _problems_of_versions(facts: Facts, expected: Expected) -> list[str]:
    return [
        f"{name} {version_of(facts, name)}, the others have {usual}; install the same environment"
        for name, usual in expected.versions.items()
        if version_of(facts, name) != usual
    ]


def _problems_of_gpus(gpus: list[dict[str, str]], slots: int, expected: Expected) -> list[str]:
    problems = []
    if len(gpus) != slots:
        problems.append(
            f"{len(gpus)} GPUs, the hostfile says {slots}; look for one that fell off the bus (dmesg, Xid 79)"
        )
    for number, fields in enumerate(gpus):
        gpu = {**fields, "number": number}
        problems += [check.sentence(gpu, expected) for check in GPU_CHECKS if check.fails(gpu, expected)]
    return list(dict.fromkeys(problems))  # GPUs of a host share a driver


def version_of(facts: Facts, name: str) -> str:
    return facts["versions"].get(name, "missing")


def most_common(values: list[str]) -> str:
    return Counter(values).most_common(1)[0][0] if values else ""


def median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
