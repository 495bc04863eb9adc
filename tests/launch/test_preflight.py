"""Preflight finds the host whose ranks are slower than the others', and refuses what it cannot look at."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time

import pytest

from launch import preflight
from launch.cluster.allocation import Hosts, _running, run
from launch.cluster.hosts import deepspeed_launcher
from launch.preflight import judge_links, main
from launch.preflight_ranks import rounds
from tests.conftest import ROOT, ds_config, launch
from tests.in_process import run_script

SLOTS = {"a": 2, "b": 2, "c": 2}


def links(tflops=(250.0,) * 6, inside=(200.0,) * 3, between=(20.0, 20.0, 20.0), device="NVIDIA A100-SXM4-80GB"):
    both = lambda rate: {"all_reduce": rate, "all_to_all": 2 * rate}  # noqa: E731
    pairs = ("a b", "a c", "b c")
    return {
        "device": device,
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


@pytest.mark.parametrize(
    ("tflops", "slow"),
    [
        ((250, 250, 250, 250, 250, 232), ["c"]),  # GPUs scatter little, so 93% is slow
        ((250, 249, 251, 248, 250, 220), ["c"]),
        ((250, 230, 260, 225, 245, 228), []),  # as much as most of them scatter
        ((2.0, 1.2, 1.6, 2.4, 1.9, 1.4), []),
        ((2.0, 1.9, 2.1, 2.0, 1.9, 0.7), ["c"]),  # much more than they scatter
        ((2.0, 1.0), []),  # of two neither is the slow one
    ],
)
def test_a_rank_is_slow_by_more_than_most_ranks_scatter(tflops, slow):
    slots = {"a": 2, "b": 2, "c": 2} if len(tflops) == 6 else {"a": 1, "b": 1}
    measured = {"tflops": list(tflops), "inside": {}, "between": {}}
    assert list(judge_links(measured, slots)) == slow


@pytest.mark.parametrize(
    ("inside", "slow"),
    [((200, 200, 170), []), ((200, 200, 150), ["c"]), ((200, 150, 100), []), ((200, 190, 100), ["c"]), ((200, 130, 190), ["b"])],
)  # fmt: skip
def test_links_are_slow_by_more_than_most_hosts_scatter(inside, slow):
    assert list(judge_links(links(inside=inside), SLOTS)) == slow


def test_cpu_ranks_have_no_clocks_and_cables():
    slow = judge_links(links(tflops=(2, 2, 2, 1, 2, 2), inside=(9, 9, 2), device="cpu"), SLOTS)
    assert slow["b"] == ["CPU rank 1 multiplies at 1 TFLOP/s, 50% of the median; look at other work on its host"]
    assert slow["c"][0].endswith("look at other work on its host and its network")


FACTS = {
    "hostname": "h", "versions": {"python": "3.11"}, "gpus": [], "clock_s": 0.0, "seen_here": True, "free_gib": 1000.0,
    "shm_free_gib": 64.0, "nofile": 65536, "memlock": -1, "infiniband": False, "write_mb_per_s": 900.0, "read_mb_per_s": 900.0,
}  # fmt: skip
GPU = {"name": "A100", "driver_version": "1", "memory.used": "0", "ecc.errors.uncorrected.volatile.total": "0"}


@pytest.fixture
def looked_at(tmp_path, monkeypatch, capsys):
    """A function that runs the command on three hosts of a hostfile that answer and measure what it is given; its report."""

    def look(measured, facts=(), gpus=True):
        asked, times = iter(facts), iter(measured)
        usual = {**FACTS, "gpus": [GPU, GPU] if gpus else []}
        monkeypatch.setattr(preflight, "_ask_host", lambda *_: {**usual, **next(asked, {})})
        monkeypatch.setattr(preflight, "measure", lambda *_: next(times))
        monkeypatch.setattr("launch.cluster.allocation.Hosts.lost", lambda *_: [])
        monkeypatch.setattr("launch.cluster.allocation.Hosts.check_programs", lambda *_: None)
        (tmp_path / "hosts").write_text("".join(f"{host} slots=2\n" for host in SLOTS))
        code = main(["--hostfile", str(tmp_path / "hosts"), "--folder", str(tmp_path), "--json", str(tmp_path / "j")])
        assert next(times, None) is None
        return code, json.loads((tmp_path / "j").read_text()), capsys.readouterr()

    return look


def test_what_is_slow_once_is_measured_again_and_the_best_time_counts(looked_at):
    slow, good = links(tflops=(250, 250, 250, 200, 250, 250)), links(tflops=(200,) * 3 + (250,) * 3)
    code, report, output = looked_at([slow, good])
    assert (code, report["bad"], report["links"]["tflops"]) == (0, {}, [250.0] * 6)
    assert "slow beside the others: b; measuring once more, since the best time counts" in output.err
    assert "all 3 hosts are good" in output.out
    code, report, _ = looked_at([slow, slow, slow])
    assert (code, list(report["bad"])) == (1, ["b"])


def test_a_slow_host_without_gpus_is_a_note(looked_at):
    code, report, output = looked_at([links(tflops=(2, 2, 2, 1, 2, 2), device="cpu")], gpus=False)
    assert (code, report["bad"], list(report["notes"])) == (0, {}, ["b"])
    assert "note: b: CPU rank 1 multiplies" in output.out
    assert "heat" not in output.out + output.err


def test_a_slow_disk_is_asked_again(looked_at):
    slow = {"write_mb_per_s": 100.0}
    code, report, output = looked_at([links()], [{}, slow, {}, {}])
    assert (code, report["bad"]) == (0, {})
    assert "asking 1 host, slow at " in output.err
    code, report, _ = looked_at([links()], [{}, slow, {}, slow])
    assert code == 1
    assert "writes --folder at 100 MB/s, the others at 900" in next(iter(report["bad"].values()))[0]


def test_the_lines_of_the_ranks_are_told_with_the_time_and_the_rest_is_the_errors(capsys):
    ranks = "print('127.0.0.2: preflight progress: matmuls for 5 s', flush=True); print('lost'); raise SystemExit(3)"
    assert preflight.run_telling([sys.executable, "-c", ranks]) == (3, "lost\n")
    assert re.fullmatch(r"preflight: matmuls for 5 s, \d.* s since the start\n", capsys.readouterr().err)


def test_hosts_that_do_not_answer_are_named_while_they_are_waited_for(tmp_path, monkeypatch, capsys):
    place = Hosts(SLOTS, [], tmp_path)
    monkeypatch.setattr(preflight, "ASKED_EVERY_S", 0.05)

    def run_on(host, *_):
        time.sleep(0.3 if host == "b" else 0)
        return subprocess.CompletedProcess([], 255, "", "ssh: connect to host: Connection refused\n")

    monkeypatch.setattr(place, "run_on", run_on)
    _, bad = preflight.ask(place, tmp_path, 1)
    assert bad["b"] == [
        f"cannot be asked: ssh: connect to host: Connection refused; try by hand: ssh -o BatchMode=yes b {sys.executable} --version"
    ]
    told = capsys.readouterr().err
    assert told.startswith(
        "preflight: asking 3 hosts for GPUs, versions, limits and the speed of --folder; about 20 s\n"
    )
    assert re.search(r"no answer from b after 0 s; each host has 300 s\n", told)
    assert re.search(r"0 of 3 hosts answered, 0\.\d s\n", told)


def test_ctrl_c_does_not_wait_for_hosts_that_do_not_answer(tmp_path, monkeypatch):
    place, ended = Hosts(SLOTS, [], tmp_path), []

    def run_on(*_):
        ended.append(run(["bash", "-c", "sleep 60 & wait"], 60.0).returncode)  # as ssh and what it starts
        return subprocess.CompletedProcess([], 255, "", "")

    def interrupt(*_):
        while len(_running) < len(SLOTS):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, "run_on", run_on)
    monkeypatch.setattr(preflight, "_wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        preflight.ask(place, tmp_path, 1)
    assert ended == [-9, -9, -9]


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

    def start(words: list[str]) -> tuple[int, str]:
        started.append(words)
        at = words.index(str(ROOT / "launch/preflight_ranks.py"))
        assert words[:5] == [deepspeed_launcher(), "--hostfile", os.devnull, "--num_gpus", "2"]
        done = launch(2, *words[at:])
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setattr("launch.preflight.run_telling", start)
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
        (("--num_gpus", 1, "--folder", "/dev/null/a"), "--folder /dev/null/a cannot be written"),
        (("--num_gpus", 1, "--json", "/dev/null/a"), "--json /dev/null/a cannot be written"),
        (("--num_gpus", 1, "--gpus-per-node", 2), "--gpus-per-node goes with --slurm"),
        (("--num_gpus", 1, "--interconnect", "fast"), "--interconnect fast is not understood"),
        (("--num_gpus", 1, "--config", "none", "--deepspeed_config", "neither"), "neither"),
        (
            (
                "--num_gpus",
                1,
                "--config",
                "recipe/configs/runs/quickstart.yaml",
                "--deepspeed_config",
                "ds_configs/cpu_2.json",
            ),
            "the hosts have 1 rank, but ds_configs/cpu_2.json is for 2; add hosts",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_refused(words, message, tmp_path):
    done = run_script("launch/preflight.py", "--folder", tmp_path / "new", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
