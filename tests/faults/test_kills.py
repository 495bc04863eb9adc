"""kill -9 wherever it hurts: the run goes on by itself and ends with the losses of an undisturbed one, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from recipe.base.checkpoint_files import complete
from recipe.base.heartbeats import read_heartbeats
from recipe.run.checkpoint import COMMIT_POINTS
from tests.faults.conftest import STEPS, report, seconds_to_notice

pytestmark = [pytest.mark.distributed, pytest.mark.faults]


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
    faults = [{**kill, "incarnation": number} for number, kill in enumerate(kills, start=1)]
    run = supervise("killed", faults)
    assert run.finished() == undisturbed
    ends = run.events("incarnation_ended")
    assert len(ends) == len(faults)
    for end, fault in zip(ends, faults, strict=True):
        assert end["kind"] == "killed"
        assert end["rank"] == fault["rank"]
        assert f"rank {fault['rank']} on" in end["said"]
        assert "SIGKILL" in end["said"]
        assert end["lost_steps"] <= 2 + 1  # an interval, and the step that a save in the background takes
        where = (
            f"during a save, after `{fault['point']}`"
            if "point" in fault
            else fault["kind"].replace("kill_in_", "in the ")
        )
        report(
            f"kill -9 of a rank {where}",
            end["said"].split(";")[0],
            seconds=seconds_to_notice(run, end["incarnation"]),
            lost_steps=end["lost_steps"],
            then="restarted, losses equal to the last bit",
        )
    assert not list((run.run_dir / "checkpoints").glob("*.partial"))
    assert len(complete(run.run_dir / "checkpoints")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.soak)])
def test_random_kills_over_one_run(kills, supervise, undisturbed):
    """Ranks killed from outside at random moments, also while they start and save."""
    dice = random.Random(kills)
    run = supervise("random", words=("--max-stalls", 99))
    done = 0
    while done < kills and run.process.poll() is None:
        number = done + 1
        heartbeats = run.run_dir / "heartbeats"
        run.until(lambda n=number, h=heartbeats: len(read_heartbeats(h, n)) == 2)
        victim, patience = dice.randrange(2), dice.uniform(0, 8)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and run.process.poll() is None and not run.events("finished"):
            time.sleep(0.02)
        if run.process.poll() is not None or run.events("finished"):
            break
        os.kill(read_heartbeats(heartbeats, number)[victim].pid, signal.SIGKILL)
        done += 1
        run.until(lambda n=number: len(run.events("incarnation_ended")) == n)
    assert run.finished() == undisturbed
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    report(
        f"{done} kills at random moments of one run",
        "each, by its rank",
        seconds=None,
        lost_steps=None,
        then="losses equal to the last bit",
    )
