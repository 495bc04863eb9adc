"""kill -9 wherever it hurts: the run goes on by itself and ends with the losses of an undisturbed one, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from recipe.checkpoints.store import COMMIT_POINTS
from recipe.run.checkpoint_files import complete
from recipe.run.heartbeats import read_heartbeats
from recipe.run.records import read_metrics
from tests.conftest import launch, run_forked, schedule_of
from tests.faults.conftest import SECTIONS, report, seconds_to_notice
from tests.pages import screenshot

pytestmark = [pytest.mark.distributed, pytest.mark.faults, pytest.mark.slow]


def test_killed_in_the_step_and_at_every_point_of_the_commit_protocol(supervise, undisturbed):
    kills = [
        {"kind": "kill_in_forward", "rank": 1, "step": 4},
        {"kind": "kill_in_backward", "rank": 0, "step": 4},
        {"kind": "kill_in_collective", "rank": 1, "step": 4},
        # Every rank passes the first three points, rank 0 alone the others; from a later step each, so that
        # the checkpoints before it are there.
        *(
            {"kind": "kill_in_save", "rank": number % 2 if number < 3 else 0, "point": point, "step": 4 + number}
            for number, point in enumerate(COMMIT_POINTS)
        ),
    ]
    faults = [{**kill, "attempt": number} for number, kill in enumerate(kills, start=1)]
    run = supervise("killed", faults)
    assert run.finished() == undisturbed
    ends = run.events("attempt_ended")
    assert len(ends) == len(faults)
    for end, fault in zip(ends, faults, strict=True):
        assert end["kind"] == "killed"
        assert end["rank"] == fault["rank"]
        assert f"rank {fault['rank']} on" in end["message"]
        assert "SIGKILL" in end["message"]
        assert end["lost_steps"] <= 2 + 1  # an interval, and the step that a save in the background takes
        where = (
            f"during a save, after `{fault['point']}`"
            if "point" in fault
            else fault["kind"].replace("kill_in_", "in the ")
        )
        report(
            f"kill -9 of a rank {where}",
            end["message"].split(";")[0],
            seconds=seconds_to_notice(run, end["attempt"]),
            lost_steps=end["lost_steps"],
            then="restarted, losses equal to the last bit",
        )
    assert not list((run.run_dir / "checkpoints").glob("*.partial"))
    assert len(complete(run.run_dir / "checkpoints")) == 3
    drawn = run_forked("recipe/report.py", run.run_dir)
    assert drawn.returncode == 0, drawn.stderr
    page = (run.run_dir / "report.html").read_text(encoding="utf-8")
    assert page.split("<h2>What happened")[0].count('<g class="mark bad">') == len(faults)
    assert page.count('class="curve lost"') >= 1
    screenshot(run.run_dir / "report.html", "report_of_nine_kills")


@pytest.mark.soak
def test_fifty_random_kills_over_one_run(supervise, new_run, small_model, write_ds):
    """Ranks killed from outside at random moments, also while they start and save."""
    kills = 50
    schedule = schedule_of(12 * kills)
    whole = new_run("whole", **{**SECTIONS, "model": str(small_model), "schedule": schedule})
    done = launch(
        2, "recipe/train.py", *whole.arguments(write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)), timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    dice = random.Random(kills)
    run = supervise("random", words=("--max-stalls", 99), schedule=schedule)
    killed = 0
    beats = run.run_dir / "heartbeats"
    while killed < kills and not run.over():
        run.until(lambda number=killed + 1: len(read_heartbeats(beats, number)) == 2)
        victim, moment = dice.randrange(2), time.monotonic() + dice.uniform(0, 6)
        while time.monotonic() < moment and not run.over():
            time.sleep(0.02)
        if not run.over():
            killed += 1
            os.kill(read_heartbeats(beats, killed)[victim].pid, signal.SIGKILL)
            run.until(lambda number=killed: len(run.events("attempt_ended")) == number)
    assert run.finished() == {m["step"]: m["loss"] for m in read_metrics(whole.run_dir)}
    assert killed > kills // 2  # a fast machine may finish before the last ones
    worst = max(end["lost_steps"] for end in run.events("attempt_ended"))
    assert worst <= 2 + 1
    report(
        f"{killed} kills at random moments of one run of {12 * kills} steps", "each, by its rank", seconds=None,
        lost_steps=worst, then="losses equal to the last bit",
    )  # fmt: skip
