"""Processes that stop, end or race: hangs are named and ended, nothing outlives its launcher, two never share a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from recipe.run.heartbeats import read_heartbeats
from tests.faults.conftest import STEPS, report, seconds_to_notice

pytestmark = [pytest.mark.distributed, pytest.mark.faults, pytest.mark.slow]

# From step 3 on, so that what is done to a run from outside comes before its end on any machine.
SLOWLY = [{"kind": "sleep", "rank": 0, "step": 3, "steps": STEPS, "seconds": 0.5}]


def test_a_stopped_rank_is_named_and_the_job_restarted(supervise, undisturbed):
    run = supervise("stopped", [{"kind": "stop_process", "rank": 1, "step": 5}], real=True)
    assert run.finished() == undisturbed
    (end,) = run.events("attempt_ended")
    assert (end["kind"], end["rank"]) == ("hang", 1)
    assert "rank 1 on" in end["message"]
    assert "is stopped, last seen in step" in end["message"]
    stacks = (run.run_dir / "stacks" / "attempt_0001_rank_00000.txt").read_text()
    assert "all_to_all_single" in stacks  # where the rank that waits is
    report(
        "SIGSTOP of a rank", end["message"].split(";")[0], seconds=seconds_to_notice(run, 1), lost_steps=end["lost_steps"],
        then="job ended, restarted, losses equal to the last bit",
    )  # fmt: skip


def test_ranks_whose_launcher_is_ended_save_and_are_started_again(supervise, undisturbed):
    run = supervise("launcher", SLOWLY, real=True, watch={"no_progress_s": 60, "heartbeat_s": 1})
    run.until_step(5)
    group = os.getpgid(read_heartbeats(run.run_dir / "heartbeats", 1)[0].pid)
    os.kill(group, signal.SIGTERM)  # the deepspeed process leads its group
    assert run.finished() == undisturbed
    (end,) = run.events("attempt_ended")
    assert end["kind"] == "stopped"
    assert end["lost_steps"] == 0
    assert "outlived their launcher, SIGTERM" in run.output
    report(
        "SIGTERM to the launcher", "ranks that outlive it are asked to save", seconds=seconds_to_notice(run, 1),
        lost_steps=0, then="saved, restarted, losses equal to the last bit",
    )  # fmt: skip


def test_a_signal_to_the_supervisor_saves_and_a_new_one_goes_on(supervise, undisturbed):
    run = supervise("asked", SLOWLY)
    run.until_step(5)
    run.process.send_signal(signal.SIGUSR1)
    assert run.wait() == 75
    (stop,) = run.events("stopped")
    assert (stop["why"], stop["step"] < STEPS) == ("file", True)
    assert not (run.run_dir / "stop").exists()
    again = supervise("asked", run=run.run)
    assert again.finished() == undisturbed
    report(
        "SIGUSR1 to the supervisor",
        stop["message"].split(";")[0],
        seconds=None,
        lost_steps=0,
        then="saved; started again, losses equal to the last bit",
    )


def test_a_signal_while_the_run_starts_ends_it_at_once(supervise):
    run = supervise("early", real=True)
    run.until(lambda: "supervisor: " in run.output)  # the launcher has been started, no rank yet
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 75
    assert not run.events()
    assert not (run.run_dir / "stop").exists()


def test_a_time_limit_is_kept(supervise):
    slowly = [{"kind": "sleep", "rank": 0, "step": 1, "steps": STEPS, "seconds": 4.0}]
    run = supervise("limited", slowly, words=("--time-limit", 60), watch={"no_progress_s": 60})
    assert run.wait() == 75
    (stop,) = run.events("stopped")
    assert stop["why"] == "time limit"
    assert stop["step"] < STEPS
    assert (run.run_dir / "checkpoints" / f"step_{stop['step']:08d}").exists()


def test_two_attempts_do_not_share_a_run_folder(supervise, undisturbed):
    """The first one's ranks are held while the second tries, so that they cannot finish before it."""
    run = supervise("raced", SLOWLY, watch={"no_progress_s": 200})
    run.until_step(2)
    ranks = [beat.pid for beat in read_heartbeats(run.run_dir / "heartbeats", 1).values()]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    second = supervise("raced", run=run.run)
    code, took = second.wait(), time.monotonic() - began
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    assert code == 2
    assert f"{run.run_dir} is in use by process" in second.output
    assert run.finished() == undisturbed
    assert len(run.events("started")) == 1
    report(
        "two attempts race for a run folder", "the second, by the first one's lock", seconds=took, lost_steps=0,
        then="the second ends with code 2, the first with equal losses",
    )  # fmt: skip


def test_an_error_of_the_user_is_not_tried_again(new_run, write_ds, tmp_path):
    run = new_run("wrong", tokenizer="/nonexistent")
    words = ["launch/train.sh", "--num_gpus", "2", "--config", str(run.config)]
    done = subprocess.run(
        [*words, "--deepspeed_config", str(write_ds(2, micro_batch=4, accumulation=1, autoep_size=2))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds no tokenizer.json" in done.stderr
    assert not run.run_dir.exists()
