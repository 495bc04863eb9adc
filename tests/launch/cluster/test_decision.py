"""What follows the end of an attempt, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.decision import Decision, End, Failure, Outcome, Rules, decide, incident_in, outcome_of
from launch.cluster.incidents import Incident
from recipe.base.ranks import RESTART
from recipe.run.records import CAUSES

STARTED, FINISHED = {"event": "started"}, {"event": "finished"}
REWIND = {"event": "rewind", "message": "back to step 4"}


def stopped(why: str) -> dict[str, Any]:
    return {"event": "stopped", "why": why, "message": "stopped"}


@pytest.mark.parametrize(
    ("code", "event", "stop_asked", "outcome"),
    [
        (0, FINISHED, False, Outcome.FINISHED),
        (0, FINISHED, True, Outcome.FINISHED),
        (1, FINISHED, False, Outcome.FAILED),
        (0, STARTED, False, Outcome.FAILED),
        (0, stopped("file"), False, Outcome.STOPPED),
        (RESTART, stopped("time limit"), False, Outcome.STOPPED),
        (RESTART, stopped("signal"), False, Outcome.FAILED),  # of the ranks alone
        (RESTART, stopped("signal"), True, Outcome.STOPPED),
        (-15, STARTED, True, Outcome.STOPPED),
        (2, stopped("file"), True, Outcome.FAILED),
        (2, {}, False, Outcome.FAILED),
        (RESTART, REWIND, False, Outcome.FAILED),
    ],
)
def test_the_outcome_of_an_attempt_that_began(code, event, stop_asked, outcome):
    assert outcome_of(End(code, True, event, stop_asked)) is outcome


@pytest.mark.parametrize(
    ("code", "stop_asked", "outcome"),
    [
        (2, False, Outcome.REFUSED),
        (2, True, Outcome.REFUSED),
        (1, False, Outcome.FAILED),
        (0, False, Outcome.FAILED),
        (RESTART, True, Outcome.STOPPED),
    ],
)
def test_the_outcome_of_ranks_that_wrote_nothing(code, stop_asked, outcome):
    assert outcome_of(End(code, False, {}, stop_asked)) is outcome


def test_what_an_end_tells_without_the_ranks_records():
    assert incident_in(End(1, True, STARTED, False)) is None
    assert incident_in(End(75, True, REWIND, False)) == Incident("rewind", "back to step 4")
    assert incident_in(End(75, True, stopped("signal"), False)) == Incident("stopped", "stopped")
    assert incident_in(End(1, False, {}, False)) == Incident(
        "unknown", "the ranks ended before the run began, and only the log says why"
    )


RULES = Rules(Path("runs/a"), max_stalls=3, backoff_s=10.0, step_down_on_oom=False, micro_batch=8)
STEP_DOWN = replace(RULES, step_down_on_oom=True)


def failure(kind: str, *, stalls: int = 0, **more: Any) -> Failure:
    return Failure(Incident(kind, "why", 3, "b"), more.pop("code", 1), stalls, more.pop("advanced", False), **more)


@pytest.mark.parametrize(
    ("failed", "rules", "decision"),
    [
        # A failure of a rank is its host's; others blame nobody.
        (failure("killed"), RULES, Decision(1, 20.0, blame=3)),
        (failure("hang"), RULES, Decision(1, 20.0, blame=3)),
        (failure("error"), RULES, Decision(1, 20.0, blame=3)),
        (failure("peer_lost"), RULES, Decision(1, 20.0)),
        (failure("unknown"), RULES, Decision(1, 20.0)),
        (failure("stopped"), RULES, Decision(1, 20.0)),
        # The wait doubles with each stall, up to five minutes; a new checkpoint starts the count again.
        (failure("error", stalls=2), RULES, Decision(3, 80.0, blame=3)),
        (failure("error", stalls=2, advanced=True), RULES, Decision(0, 10.0, blame=3)),
        (failure("error", stalls=9), replace(RULES, max_stalls=99), Decision(10, 300.0, blame=3)),
        (failure("rewind", stalls=3), RULES, Decision(0, 0.0)),
        # What a user must change.
        (failure("user_error"), RULES, Decision(1, give_up="not restarted: why")),
        (failure("error", code=2), RULES, Decision(1, give_up="not restarted: why")),
        (failure("error", code=2, stalls=9), RULES, Decision(10, give_up="not restarted: why")),
        (
            failure("error", stalls=3),
            RULES,
            Decision(
                4,
                give_up="4 starts in a row ended without a new checkpoint, the last: why; look at the log and at events.jsonl in runs/a",
            ),
        ),
        (
            failure("killed"),
            replace(RULES, max_stalls=0),
            Decision(
                1,
                give_up="1 starts in a row ended without a new checkpoint, the last: why; look at the log and at events.jsonl in runs/a",
            ),
        ),
        # Out of memory.
        (failure("out_of_memory"), RULES, Decision(1, 20.0)),
        (failure("out_of_memory"), STEP_DOWN, Decision(1, 20.0, step_down=True)),
        (
            failure("out_of_memory"),
            replace(STEP_DOWN, micro_batch=3),
            Decision(
                1, give_up="out of memory with a micro-batch that cannot be halved; see the suggestions in the log"
            ),
        ),
        # A run that keeps less after it gives way to nothing else, and has not stalled: it keeps nothing in the end.
        (failure("out_of_memory", kept_gib=9.5), RULES, Decision(0, 10.0, kept_gib=9.5)),
        (failure("out_of_memory", kept_gib=0.0, stalls=3), STEP_DOWN, Decision(3, 80.0, kept_gib=0.0)),
        (failure("out_of_memory", kept_gib=9.5, stalls=3, advanced=True), RULES, Decision(0, 10.0, kept_gib=9.5)),
        (failure("out_of_memory", kept_gib=9.5, code=2), RULES, Decision(1, give_up="not restarted: why")),
        (failure("error"), STEP_DOWN, Decision(1, 20.0, blame=3)),
        # Hosts that compute other bits.
        (failure("corruption", bad_hosts=frozenset("b")), RULES, Decision(1, 20.0, leave_out=frozenset("b"))),
        (
            failure("corruption", bad_hosts=frozenset("b"), no_spare="too few"),
            RULES,
            Decision(
                1,
                20.0,
                give_up="not restarted: why; too few. Started again without that host, the run goes on from a checkpoint "
                "before the last good probe",
                leave_out=frozenset("b"),
            ),
        ),
    ],
)
def test_what_follows_a_failure(failed, rules, decision):
    assert decide(failed, rules) == decision


def test_every_kind_of_cause_has_a_case_above():
    cases = test_what_follows_a_failure.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert set(CAUSES) <= {failed.incident.kind for failed, _, _ in cases}


def test_a_failure_without_a_rank_blames_nobody():
    without_rank = replace(failure("error"), incident=Incident("error", "all 4 ranks alike"))
    assert decide(without_rank, RULES) == Decision(1, 20.0)
