"""Preflight finds the host that differs from the others, and says what to do about it."""

from __future__ import annotations

import itertools
import json

import pytest

from launch.preflight import judge, judge_links
from launch.preflight_ranks import rounds
from tests.conftest import ds_config, run_python

GPU = {
    "name": "NVIDIA A100-SXM4-80GB",
    "driver_version": "550.54",
    "memory.total": "81920",
    "memory.used": "4",
    "ecc.errors.uncorrected.volatile.total": "0",
}
SLOTS = {"a": 2, "b": 2, "c": 2}


def host(**changes):
    good = {
        "versions": {"python": "3.11.7", "torch": "2.13.0", "nccl": "2.27.3"},
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


def test_hosts_that_are_alike_are_good():
    assert judge({name: host() for name in SLOTS}, SLOTS, 500) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": [GPU]}, "1 GPUs, the hostfile says 2"),
        ({"gpus": []}, "0 GPUs, the hostfile says 2"),
        ({"gpus": [GPU, {**GPU, "name": "NVIDIA A100-PCIE-40GB"}]}, "GPU 1 is a NVIDIA A100-PCIE-40GB"),
        ({"gpus": [GPU, {**GPU, "memory.used": "40000"}]}, "GPU 1 has 40000 MiB in use"),
        ({"gpus": [{**GPU, "ecc.errors.uncorrected.volatile.total": "3"}, GPU]}, "GPU 0 has uncorrected memory errors"),
        ({"gpus": [{**GPU, "driver_version": "535.1"}] * 2}, "driver 535.1, the others have 550.54"),
        (
            {"versions": {"python": "3.11.7", "torch": "2.12.0", "nccl": "2.27.3"}},
            "torch 2.12.0, the others have 2.13.0",
        ),
        ({"versions": {"python": "3.11.7", "torch": "2.13.0"}}, "nccl missing, the others have 2.27.3"),
        ({"clock_s": 3.0}, "clock is off by 3.0 s"),
        ({"seen_here": False}, "mount the shared file system"),
        ({"free_gib": 100.0}, "100 GiB free in --folder, the run needs 500"),
        ({"shm_free_gib": 0.06}, "0.06 GiB free in /dev/shm"),
        ({"nofile": 1024}, "ulimit -n is 1024"),
        ({"memlock": 65536}, "ulimit -l is limited"),
        ({"write_mb_per_s": 100.0}, "writes --folder at 100 MB/s, the others at 900"),
        ({"read_mb_per_s": 900.0}, "reads --folder at 900 MB/s, the others at 2000"),
    ],
)
def test_a_host_that_differs_is_named_with_what_to_do(changes, message):
    bad = judge({"a": host(), "b": host(**changes), "c": host()}, SLOTS, 500)
    assert list(bad) == ["b"]
    assert len(bad["b"]) == 1
    assert message in bad["b"][0]


def links(tflops=(250.0,) * 6, inside=(200.0,) * 3, between=(20.0, 20.0, 20.0)):
    both = lambda rate: {"all_reduce": rate, "all_to_all": 2 * rate}  # noqa: E731
    pairs = ("a b", "a c", "b c")
    return {
        "tflops": list(tflops),
        "inside": dict(zip("abc", map(both, inside), strict=True)),
        "between": dict(zip(pairs, map(both, between), strict=True)),
    }


def test_a_slow_gpu_and_slow_links_are_found():
    assert judge_links(links(), SLOTS) == {}
    slow_gpu = judge_links(links(tflops=(250, 250, 250, 220, 250, 250)), SLOTS)
    assert slow_gpu == {"b": ["GPU 1 multiplies at 220 TFLOP/s, 88% of the median; look at its clocks and heat"]}
    inside = judge_links(links(inside=(200, 200, 100)), SLOTS)
    assert [reason.split(",")[0] for reason in inside["c"]] == [
        "all_reduce inside at 100 GB/s",
        "all_to_all inside at 200 GB/s",
    ]


def test_a_host_with_slow_links_to_all_others_is_told_from_its_peers():
    slots = dict.fromkeys("abcd", 1)
    pairs = {f"{x} {y}": (5.0 if "d" in (x, y) else 20.0) for x, y in itertools.combinations("abcd", 2)}
    found = {
        "tflops": [1.0] * 4,
        "inside": {},
        "between": {p: {"all_reduce": r, "all_to_all": r} for p, r in pairs.items()},
    }
    assert list(judge_links(found, slots)) == ["d"]


@pytest.mark.parametrize("hosts", [1, 2, 3, 8, 33])
def test_each_two_hosts_meet_once_and_none_twice_in_a_round(hosts):
    met = rounds(hosts)
    assert sorted(pair for found in met for pair in found) == list(itertools.combinations(range(hosts), 2))
    for found in met:
        busy = [host for pair in found for host in pair]
        assert len(busy) == len(set(busy))


@pytest.mark.distributed
def test_two_ranks_of_this_host_are_looked_at(tmp_path, new_run):
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps(ds_config(2, micro_batch=1, accumulation=1, autoep_size=1)))
    words = ("--folder", tmp_path / "shared", "--burn-seconds", 0.5, "--mib", 4, "--config", new_run("r").config)
    done = run_python(
        "launch/preflight.py", "--num_gpus", 2, *words, "--deepspeed_config", ds, "--json", tmp_path / "all.json"
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert len(found["links"]["tflops"]) == 2
    (inside,) = found["links"]["inside"].values()
    assert inside["all_reduce"] > 0
    assert found["facts"].keys() == found["links"]["slots"].keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--num_gpus", 1, "--config", "recipe/configs/runs/quickstart.yaml"),
            "give both --config and --deepspeed_config",
        ),
        (("--hostfile", "none"), "--hostfile none cannot be read"),
        (("--num_gpus", 1, "--gpus-per-node", 2), "--gpus-per-node goes with --slurm"),
        (
            (
                "--num_gpus",
                1,
                "--config",
                "recipe/configs/runs/quickstart.yaml",
                "--deepspeed_config",
                "ds_configs/cpu_2.json",
            ),
            "the hosts have 1 ranks, but ds_configs/cpu_2.json is for 2; add hosts",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_refused(words, message, tmp_path):
    done = run_python("launch/preflight.py", *words, "--folder", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
