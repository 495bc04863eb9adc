"""The live view puts first what a person must look at."""

from __future__ import annotations

import pytest

from recipe.base.heartbeats import Heartbeat
from recipe.base.run_records import last_metrics, read_events, read_starts
from recipe.reading.alarms import alarms
from tests.conftest import run_python


def beat(rank: int) -> Heartbeat:
    return Heartbeat(rank, f"host{rank}", 1, 1, 50, "backward", 7, 9)


def of(run, now: float, ages=None, last=None) -> list[str]:
    beats = {rank: beat(rank) for rank in ages or {}}
    found = alarms(
        read_starts(run.path)[-1], read_events(run.path), last or last_metrics(run.path), ages or {}, beats, now
    )
    return [alarm.said for alarm in found]


@pytest.fixture
def run(written):
    found = written()
    found.start()
    found.steps(1, 50)
    return found


def test_a_healthy_run_has_no_alarm(run):
    assert of(run, run.now + 5, {0: 1.0, 1: 2.0}) == []


def test_silent_ranks_and_a_step_that_does_not_come_are_alarms(run):
    first, second = of(run, run.now + 2000, {0: 3.0, 1: 500.0})
    assert first == "no heartbeat for 8m 20s: rank 1 on host1 (backward)"
    assert second == "no logged step for 33m 20s, the last was 50"


def test_the_end_of_a_run_is_the_first_alarm_and_warnings_follow(run):
    run.event("straggler", 40, said="rank 3 is slow")
    run.fault(50, lost_s=4)
    first, second = of(run, run.now)
    assert first.startswith("ended: rank 1 on b killed by SIGKILL")
    assert second == "5.0 s ago, step 40: rank 3 is slow"
    assert of(run, run.now + 7200) == [first]  # what is long ago is history


def test_routing_that_collapses_is_an_alarm(run):
    last = {**last_metrics(run.path), "expert_load_max_over_mean": 6.0, "routing": {"dead_experts": [3, 0]}}
    assert of(run, run.now, last=last) == [
        "an expert has 6.0 times the mean load of its layer",
        "3 experts got no token in step 50",
    ]


def test_the_view_is_printed_once_without_a_terminal(run):
    run.event("incarnation_ended", 50, kind="killed", code=1, lost_s=0, said="rank 0 gone")
    done = run_python("recipe/watch.py", run.path, env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "! ended: rank 0 gone" in lines[1]
    assert any("en 51,200 tokens, zh 51,200 tokens" in line for line in lines)


@pytest.mark.parametrize("script", ["recipe/watch.py", "recipe/report.py"])
def test_what_is_no_run_is_refused(script, tmp_path):
    done = run_python(script, tmp_path)
    assert done.returncode == 2
    assert "holds no run" in done.stderr
