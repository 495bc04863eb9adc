"""Preflight finds the host whose ranks are slower than the others', and refuses what it cannot look at."""

from __future__ import annotations

import itertools
import json
import os
import subprocess

import pytest

from launch.cluster.hosts import deepspeed_launcher
from launch.preflight import judge_links, main
from launch.preflight_ranks import rounds
from tests.conftest import ROOT, ds_config, launch
from tests.in_process import run_script

SLOTS = {"a": 2, "b": 2, "c": 2}


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
    measured = {
        "tflops": [1.0] * 4,
        "inside": {},
        "between": {p: {"all_reduce": r, "all_to_all": r} for p, r in pairs.items()},
    }
    assert list(judge_links(measured, slots)) == ["d"]


@pytest.mark.parametrize("hosts", [1, 2, 3, 8, 33])
def test_each_two_hosts_meet_once_and_none_twice_in_a_round(hosts):
    met = rounds(hosts)
    assert sorted(pair for pairs in met for pair in pairs) == list(itertools.combinations(range(hosts), 2))
    for pairs in met:
        busy = [host for pair in pairs for host in pair]
        assert len(busy) == len(set(busy))


@pytest.mark.distributed
def test_two_ranks_of_this_host_are_looked_at(tmp_path, new_run, monkeypatch):
    """The ranks are real processes that measure; the launcher has a stand-in."""
    started: list[list[str]] = []

    def start(words: list[str]) -> subprocess.CompletedProcess[str]:
        started.append(words)
        at = words.index(str(ROOT / "launch/preflight_ranks.py"))
        assert words[:5] == [deepspeed_launcher(), "--hostfile", os.devnull, "--num_gpus", "2"]
        return launch(2, *words[at:])

    monkeypatch.setattr("launch.preflight.run", start)
    monkeypatch.setattr(
        "launch.cluster.allocation.ThisHost.run_on", lambda self, host, words, timeout_s: run_script(*words[1:])
    )
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # the command adds to it
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps(ds_config(2, micro_batch=1, accumulation=1, autoep_size=1)))
    words = ("--num_gpus", 2, "--folder", tmp_path / "shared", "--burn-seconds", 0.5, "--mib", 4, "--config", new_run("r").config,
             "--deepspeed_config", ds, "--json", tmp_path / "all.json")  # fmt: skip
    assert main([str(word) for word in words]) in (0, 1)
    assert len(started) == 1
    report = json.loads((tmp_path / "all.json").read_text())
    assert len(report["links"]["tflops"]) == 2
    (inside,) = report["links"]["inside"].values()
    assert inside["all_reduce"] > 0
    assert report["facts"].keys() == report["links"]["slots"].keys()


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
    done = run_script("launch/preflight.py", *words, "--folder", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
