"""Events in words: every kind that the code writes has a title and sentences, and those of one cause are one."""

from __future__ import annotations

from recipe.reading.events import NOTES, ORDINARY, TITLES, Happened, faults, happened
from tests.recipe.run.test_page import events_of, trees


def event(kind: str, step: int, /, **facts):
    return {"event": kind, "step": step, "time": float(step), "attempt": 1, "message": kind, **facts}


def ended(step: int, **facts):
    facts = {"kind": "killed", "code": 1, "rank": 1, "host": "b", "lost_steps": 3, "lost_s": 30.0, **facts}
    return event("attempt_ended", step, **facts)


def test_every_kind_that_code_writes_has_a_title_and_sentences_and_no_other_has():
    written = set().union(*map(events_of, trees()))
    assert set(TITLES) == written
    assert {kind for kind in written if not Happened(kind, [event(kind, 1)]).sentences} == set()


def test_an_interruption_says_who_what_was_done_and_the_cost():
    (group,) = happened([ended(10, excluded_hosts=["b"]), event("started", 7)])
    assert group.sentences == (
        "Rank 1 on host b was killed. The run was started again and went on after step 7. It leaves out host b. "
        "Cost: 3 steps, 30.0 s of work since the last checkpoint."
    )
    (group,) = happened([ended(10, kind="hang", rank=None, host=None, lost_steps=0, lost_s=0.0)])
    assert group.sentences == (
        "The ranks waited for each other without progress. The run was not started again since. No step was lost."
    )


def test_events_of_one_cause_in_a_row_are_one():
    again = [ended(10), event("started", 7), ended(12), event("started", 9), ended(12, rank=0), event("started", 9)]
    first, second = happened(again)
    assert (first.count, second.count) == (2, 1)
    assert "went on after step 9" in first.sentences
    assert "Cost: 6 steps, 1m 00s of work" in first.sentences
    slow = [event("straggler", step) for step in (1, 2, 3)]
    assert [(group.kind, group.count) for group in happened([*slow, event("checkpoint", 4), *slow])] == [
        ("straggler", 6)
    ]
    stopped = ended(5, kind="stopped", code=0)
    assert happened([stopped, event("stopped", 5), event("checkpoint", 5)]) == []


def test_a_note_is_told_and_is_no_alarm():
    notes = [event(kind, 1) for kind in sorted(NOTES)]
    assert {group.style for group in happened(notes)} == {"soft"}
    assert faults(notes) == []
    assert not NOTES & ORDINARY


def test_a_slow_rank_and_a_skipped_step_are_told_with_their_facts():
    slow = event("straggler", 1, slowest_rank=3, slowest_host="c", slowest_over_median=1.4)
    skipped = [event("step_skipped", step, kind="spike") for step in (2, 3)]
    first, second = happened([slow, *skipped])
    assert first.sentences.startswith("Rank 3 on host c needed 1.40 times as long as the median rank")
    assert "far above its recent values" in second.sentences
    assert second.sentences.endswith("Cost: the updates of 2 steps.")
