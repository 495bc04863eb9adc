"""The host that differs from the others is named, with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from launch.cluster.checks import GPU_CHECKS, HOST_CHECKS, judge
from launch.cluster.speeds import slow_disks

GPU = {
    "name": "NVIDIA A100-SXM4-80GB",
    "driver_version": "550.54",
    "memory.total": "81920",
    "memory.used": "4",
    "ecc.errors.uncorrected.volatile.total": "0",
}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "nccl": "2.27.3"}
SLOTS = {"a": 2, "b": 2, "c": 2}


def host(**changes: Any) -> dict[str, Any]:
    good = {
        "versions": VERSIONS,
        "gpus": [GPU, GPU],
        "clock_s": 0.0,
        "seen_here": True,
        "free_gib": 1000.0,
        "shm_free_gib": 64.0,
        "nofile": 65536,
        "memlock": -1,
        "infiniband": True,
        "write_mb_per_s": 900.0,
        "read_mb_per_s": 2000.0,
    }
    return {**good, **changes}


def judged(**changes: Any) -> dict[str, list[str]]:
    """What is wrong with three hosts, of which b has other facts."""
    facts = {"a": host(), "b": host(**changes), "c": host()}
    return judge(facts, SLOTS, 500) | slow_disks(facts)


def gpus(**changes: str) -> list[dict[str, str]]:
    return [GPU, {**GPU, **changes}]


ECC = "ecc.errors.uncorrected.volatile.total"
CASES = (
    ("number of GPUs", {"gpus": [GPU]}, "1 GPUs, the hostfile says 2"),
    ("number of GPUs", {"gpus": []}, "0 GPUs, the hostfile says 2"),
    ("model", {"gpus": gpus(name="NVIDIA A100-PCIE-40GB")}, "GPU 1 is a NVIDIA A100-PCIE-40GB, the others are NVIDIA A100-SXM4"),
    ("memory in use", {"gpus": gpus(**{"memory.used": "1025"})}, "GPU 1 has 1025 MiB in use"),
    ("memory errors", {"gpus": gpus(**{ECC: "3"})[::-1]}, "GPU 0 has uncorrected memory errors"),
    ("driver", {"gpus": [{**GPU, "driver_version": "535.1"}] * 2}, "driver 535.1, the others have 550.54"),
    ("versions", {"versions": {**VERSIONS, "torch": "2.12.0"}}, "torch 2.12.0, the others have 2.13.0"),
    ("versions", {"versions": {"python": "3.11.7", "torch": "2.13.0"}}, "nccl missing, the others have 2.27.3"),
    ("clock", {"clock_s": 0.6}, "clock is off by 0.6 s"),
    ("shared folder", {"seen_here": False}, "mount the shared file system"),
    ("room for checkpoints", {"free_gib": 499.0}, "499 GiB free in --folder, the run needs 500"),
    ("shared memory", {"shm_free_gib": 7.9}, "7.90 GiB free in /dev/shm"),
    ("open files", {"nofile": 4095}, "ulimit -n is 4095"),
    ("locked memory", {"memlock": 65536}, "ulimit -l is limited"),
    ("speed of writes", {"write_mb_per_s": 449.0}, "writes --folder at 449 MB/s, the others at 900"),
    ("speed of reads", {"read_mb_per_s": 999.0}, "reads --folder at 999 MB/s, the others at 2000"),
)  # fmt: skip


@pytest.mark.parametrize(("check", "changes", "message"), CASES)
def test_a_host_that_differs_is_named_with_what_to_do(check, changes, message):
    bad = judged(**changes)
    assert list(bad) == ["b"]
    assert len(bad["b"]) == 1
    assert message in bad["b"][0]


def test_every_check_has_a_case():
    checks = {check.name for check in (*HOST_CHECKS, *GPU_CHECKS)}
    assert {name for name, _, _ in CASES} == checks | {
        "number of GPUs",
        "versions",
        "speed of writes",
        "speed of reads",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus": gpus(**{"memory.used": "1024"})},
        {"gpus": gpus(**{ECC: "[N/A]"})},
        {"clock_s": 0.5},
        {"free_gib": 500.0},
        {"shm_free_gib": 8.0},
        {"nofile": 4096},
        {"memlock": 65536, "infiniband": False},
        {"write_mb_per_s": 450.0, "read_mb_per_s": 1000.0},
    ],
)
def test_a_host_just_within_the_limits_is_good(changes):
    assert judged(**changes) == {}


def test_of_two_hosts_neither_is_the_slow_one():
    assert slow_disks({"a": host(), "b": host(write_mb_per_s=1.0, read_mb_per_s=1.0)}) == {}


def test_disks_that_scatter_are_not_told_apart():
    speeds = {"a": 900.0, "b": 300.0, "c": 650.0, "d": 1400.0}
    assert slow_disks({name: host(write_mb_per_s=speed) for name, speed in speeds.items()}) == {}


def test_hosts_without_gpus_need_less_shared_memory():
    cpu = {name: host(gpus=[], shm_free_gib=0.25) for name in SLOTS}
    assert judge(cpu, SLOTS, 500) == {}
    assert list(judge({**cpu, "b": host(gpus=[], shm_free_gib=0.24)}, SLOTS, 500)) == ["b"]


def test_all_that_is_wrong_with_a_host_is_told_in_one_order():
    bad = judged(versions={**VERSIONS, "torch": "2.12.0"}, gpus=[GPU], clock_s=3.0, nofile=1024)
    assert [reason.split(" ")[0] for reason in bad["b"]] == ["torch", "1", "clock", "ulimit"]
