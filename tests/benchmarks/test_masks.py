"""The scoring of masks: what counts as right, and that the marked cases are what their page says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.curation_run.masks import KINDS, mistakes, read_cases, scores, table
from data_prep.curation.personal import is_identity

TEXT = "Call 555-555-0142, or (212) 555-0187 at night."
MARKED = [[5, 17, "phone"], [22, 36, "phone"]]


@pytest.mark.parametrize(
    ("masks", "right"),
    [
        ([(5, 17, "phone"), (22, 36, "phone")], 2),
        ([(4, 18, "phone")], 1),
        ([(5, 16, "phone"), (22, 36, "phone")], 1),
        ([(0, 17, "phone")], 0),
        ([(5, 36, "phone")], 0),
        ([(5, 17, "identity")], 0),
        ([], 0),
    ],
    ids=["exact", "with punctuation", "too short", "with a word", "two at once", "another kind", "none"],
)
def test_a_mask_is_right_where_it_covers_a_span_and_no_word_beyond_it(masks, right):
    case = {"id": "a", "split": "dev", "text": TEXT, "spans": MARKED}
    score = scores([case], {"a": masks})["dev"]["phone"]
    phones = sum(kind == "phone" for _, _, kind in masks)
    assert (score["marked"], score["masks"], score["right"]) == (2, phones, right)
    assert score["recall"] == right / 2
    assert score["precision"] == (right / phones if phones else None)
    assert len(mistakes([case], lambda _: masks)) == 2 - right + len(masks) - right


def test_the_table_has_a_row_for_each_tool_and_a_dash_where_it_has_no_rule():
    case = {"id": "a", "split": "test", "text": TEXT, "spans": MARKED}
    tools = {"ours": scores([case], {"a": [(5, 17, "phone")]}), "other": scores([case], {"a": []})}
    lines = table({"tools": tools}).splitlines()
    assert lines[0] == "| masks | email (0) | phone (2) | identity (0) | ip (0) |"
    assert lines[2:] == ["| ours | – | 1.00 / 0.50 | – | – |", "| other | – | – | – | – |"]


def test_the_marked_cases_are_sound():
    cases = read_cases()
    assert len({case["text"] for case in cases}) == len({case["id"] for case in cases}) == len(cases) >= 300
    for case in cases:
        spans = case["spans"]
        assert all(0 <= start < stop <= len(case["text"]) and kind in KINDS for start, stop, kind in spans), case["id"]
        assert all(one[1] <= other[0] for one, other in pairwise(spans)), case["id"]
        numbers = [case["text"][start:stop] for start, stop, kind in spans if kind == "identity" and stop - start == 18]
        assert all(is_identity(number) for number in numbers if number.isascii()), case["id"]
    for split in ("dev", "test"):
        of_split = [case for case in cases if case["split"] == split]
        assert {case["lang"] for case in of_split} == {"en", "zh"}
        assert sum(not case["spans"] for case in of_split) > len(of_split) / 2
        for kind in KINDS:
            assert sum(name == kind for case in of_split for *_, name in case["spans"]) >= 20
