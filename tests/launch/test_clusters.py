"""Launches as on a cluster: over ssh to several hosts of which one dies, and through Slurm's queue."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from socket import gethostname

import pytest

from recipe.base.files import read_json_lines
from recipe.run.records import read_metrics
from tests.clusters import loopback_hosts, slurm_says, wait_for
from tests.conftest import ROOT, launch, run_command, run_python, schedule_of
from tests.faults.conftest import report
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("engines")]

STEPS = 12
SECTIONS = {
    "schedule": schedule_of(STEPS),
    "checkpoint": {"every_steps": 2},
    "watch": {"no_progress_s": 20, "heartbeat_s": 1},
}


@pytest.fixture
def hosts(tmp_path):
    with loopback_hosts(tmp_path, ["127.0.0.2", "127.0.0.3", "127.0.0.4"]) as found:
        yield found


@pytest.fixture
def ds(write_ds):
    return write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)


def losses(run) -> dict[int, float]:
    return {m["step"]: m["loss"] for m in read_metrics(run.run_dir)}


def test_preflight_leaves_out_the_host_that_does_not_answer(hosts, tmp_path):
    hostfile = hosts.hostfile(tmp_path / "hosts", slots=1)
    hosts.kill("127.0.0.4")
    done = run_python(
        "launch/preflight.py", "--hostfile", hostfile, "--folder", tmp_path / "shared", "--burn-seconds", 0.5, "--mib", 4,
        "--write", tmp_path / "good", "--json", tmp_path / "all.json", "--", *hosts.launcher, env=hosts.environment,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "good").read_text() == "127.0.0.2 slots=1\n127.0.0.3 slots=1\n"
    assert re.search(r"127\.0\.0\.4: cannot be asked: .*refused", done.stdout)
    found = json.loads((tmp_path / "all.json").read_text())
    assert len(found["links"]["tflops"]) == 2
    assert found["links"]["between"]["127.0.0.2 127.0.0.3"]["all_to_all"] > 0
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["preflight"]


def test_a_host_that_dies_is_left_out_and_a_spare_finishes_the_run(hosts, tmp_path, new_run, ds):
    alone = new_run("alone", **SECTIONS)
    assert launch(2, "recipe/train.py", *alone.arguments(ds)).returncode == 0
    run = new_run("run", **SECTIONS)
    hostfile = hosts.hostfile(tmp_path / "hosts", slots=1)
    words = ["launch/train.sh", "--hostfile", hostfile, *run.arguments(ds), "--backoff", 0, "--", *hosts.launcher]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, env=hosts.environment, stdout=log, stderr=subprocess.STDOUT
        )
    wait_for(lambda: (run.run_dir / "metrics.jsonl").exists() and max(losses(run), default=0) >= 4, "step 4")
    hosts.kill("127.0.0.3")
    assert process.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()[-4000:]
    (end,) = (e for e in read_json_lines(run.run_dir / "events.jsonl") if e["event"] == "attempt_ended")
    assert (end["kind"], end["rank"], end["host"]) == ("killed", 1, "127.0.0.3")
    beats = [json.loads(path.read_text()) for path in sorted((run.run_dir / "heartbeats").iterdir())]
    assert [(beat["host"], beat["machine"]) for beat in beats] == [
        (h, gethostname()) for h in ("127.0.0.2", "127.0.0.4")
    ]
    assert "left out, since they do not answer: 127.0.0.3" in (tmp_path / "log").read_text()
    assert (run.run_dir / "hostfile").read_text() == "127.0.0.2 slots=1\n127.0.0.4 slots=1\n"
    assert losses(run) == losses(alone)
    report(
        "a host dies (its sshd and all that it ran)", end["message"].split(";")[0], seconds=None, lost_steps=end["lost_steps"],
        then="left out, a spare takes its place, losses equal to the last bit",
    )  # fmt: skip


def test_a_slurm_job_saves_before_its_limit_is_requeued_and_finishes(slurm, tmp_path, new_run, ds):
    slow = {"kind": "sleep", "rank": 0, "step": 1, "steps": STEPS, "seconds": 8.0, "attempt": 1}
    slowly = {"RECIPE_FAULTS": json.dumps([slow])}
    run = new_run("run", **SECTIONS)
    sent = subprocess.run(
        ["sbatch", "--parsable", "--nodes=1", "--gpus-per-node=0", "--signal=B:USR2@30", "--time=10", "--output", tmp_path / "log",
         "launch/train.slurm", "--gpus-per-node", "2", *map(str, run.arguments(ds))],
        cwd=ROOT, env={**slurm, **slowly}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()

    def kinds() -> list[str]:
        return [e["event"] for e in read_json_lines(run.run_dir / "events.jsonl")]

    wait_for(lambda: "started" in kinds(), "start of the training")
    # A minute and a half of which are left at the most; Slurm sends the signal up to a minute early.
    slurm_says(slurm, "scontrol", "update", f"JobId={job}", "TimeLimit=2")
    wait_for(lambda: "stopped" in kinds(), "stop before the limit")
    wait_for(lambda: slurm_says(slurm, "squeue", "-h", "-j", job, "-o", "%t").strip() == "PD", "requeued job")
    # Not in two minutes, Slurm's own delay; nor in the second of the kill, for which slurmd refuses the job's number.
    slurm_says(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now+5", "TimeLimit=10")
    wait_for(lambda: kinds()[-1] == "finished", "end of the run")
    wait_for(lambda: not slurm_says(slurm, "squeue", "-h", "-j", job, "-t", "PD,R,CG"), "end of the job")
    assert max(losses(run)) == STEPS, (tmp_path / "log").read_text()[-3000:]
    assert kinds().count("started") == 2


def test_a_chain_of_slurm_jobs_is_completed_where_the_run_goes_on_and_where_it_ends(slurm, tmp_path):
    """Real Slurm; the supervisor is a stand-in whose second start ends the run."""
    (tmp_path / "launch").mkdir()
    ends = "python() { [[ $SLURM_ARRAY_TASK_ID == 2 ]] || exit 75; }\n"
    (tmp_path / "launch" / "env.sh").write_text(ends)
    sent = subprocess.run(
        ["sbatch", "--parsable", "--wait", "--array=1-4%1", "--nodes=1", "--gpus-per-node=0", "--output=log-%a",
         ROOT / "launch/train.slurm"],
        cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    jobs = slurm_says(slurm, "scontrol", "--oneliner", "show", "job", sent.stdout.strip())
    tasks = {
        line.split("ArrayTaskId=")[1].split()[0]: re.findall(r"JobState=(\w+)", line) for line in jobs.splitlines()
    }
    assert tasks.pop("1") == tasks.pop("2") == ["COMPLETED"], jobs
    assert set(map(tuple, tasks.values())) == {("CANCELLED",)}, jobs
    assert "the run is not done" in (tmp_path / "log-1").read_text()
    assert "the run is done" in (tmp_path / "log-2").read_text()


def test_a_data_job_runs_from_a_slurm_job(slurm, tmp_path, prepared):
    sent = subprocess.run(
        ["sbatch", "--wait", "--output", tmp_path / "log", "launch/data_prep.slurm", "data_prep/curate.py",
         "--input", prepared.raw, "--output", tmp_path / "out", "--workers", "2", "--engine-option", "partition=cpu"],
        cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr + (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stage"] == "curate"


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs Debian's slurm-wlm")
def test_the_slurm_scripts_refuse_what_is_no_job(slurm, tmp_path):
    for script, words, folder in (
        ("data_prep.slurm", ["data_prep/nothing.py"], ROOT),
        ("train.slurm", ["--gpus-per-node=2"], tmp_path),
    ):
        sent = subprocess.run(
            ["sbatch", "--wait", "--nodes=1", "--gpus-per-node=0", "--output", tmp_path / "log", ROOT / "launch" / script, *words],
            cwd=folder, env=slurm, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert sent.returncode == 2, sent.stderr
        assert (tmp_path / "log").read_text().startswith("error: ")


def test_slurm_nodes_are_for_the_inside_of_a_job(new_run, ds):
    done = run_command("launch/train.sh", "--slurm", *new_run("run").arguments(ds))
    assert done.returncode == 2
    assert "--slurm is for the inside of a Slurm job" in done.stderr
