"""Whatever a run measures can be printed."""

from __future__ import annotations

import io
import math
import os

import pytest

from recipe.base.tables import (
    ProgressLine,
    StageLines,
    aligned_rows,
    as_float,
    duration,
    exponential,
    ratio,
    rounded_count,
    size,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.52, "7.5 s"), (245, "4m 05s"), (11_220, "3h 07m"), (12 * 86400 + 3 * 3600, "12d 03h"), (0, "0.0 s"),
     (INF, "inf"), (-INF, "-inf"), (NAN, "nan"), (1e308, "1e+303d"), (10**400, "inf"), (-3.0, "-3.0 s")],
)  # fmt: skip
def test_a_duration_of_any_number(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "over", "expected"),
    [(6, 3, 2.0), (0, 0, NAN), (1, 0, INF), (-1.0, 0.0, -INF), (NAN, 0, NAN), (INF, INF, NAN), (10**400, 3, INF),
     (-(10**400), 1, -INF), (1e308, 1e-308, INF)],
)  # fmt: skip
def test_a_ratio_of_any_numbers(value, over, expected):
    assert ratio(value, over) == pytest.approx(expected, nan_ok=True)


def test_exponentials_and_whole_numbers_beyond_a_float_are_infinite():
    assert exponential(1.0) == math.e
    assert [exponential(x) for x in (1000.0, INF, -INF)] == [INF, INF, 0.0]
    assert math.isnan(exponential(NAN))
    assert [as_float(x) for x in (3, 10**400, -(10**400))] == [3.0, INF, -INF]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_of_a_terminal_with_the_time_left(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((32, 24)))
    now = [0.0]
    with ProgressLine("curate", 10, done=4, clock=lambda: now[0]) as progress:
        now[0] = 2.0
        progress.advance()
        now[0] = 2.05
        progress.advance()  # too soon after the last one to be shown
        progress.clear()
        progress.show()
    shown = terminal.getvalue().split("\r")[1:]
    assert shown == [f"{text}\x1b[K" for text in (
        "curate 4/10  40%", "curate 5/10  50%, 10.0 s left", "", "curate 6/10  60%, 4.1 s left", "",
    )]  # fmt: skip


def test_progress_never_wraps_and_counts_nothing_too(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((10, 24)))
    ProgressLine("a long title", 0)
    assert terminal.getvalue() == "\ra long ti\x1b[K"


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    with ProgressLine("curate", 2) as progress:
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_log_is_a_line_at_a_rhythm(capsys):
    now = [0.0]
    with ProgressLine("search", 10, clock=lambda: now[0], log_every_s=10.0) as progress:
        for seconds in (4.0, 9.0, 12.0, 13.0, 22.0):
            now[0] = seconds
            progress.advance()
    assert capsys.readouterr() == ("", "search 3/10  30%, 28.0 s left\nsearch 5/10  50%, 22.0 s left\n")


def test_each_stage_of_a_start_has_its_own_seconds_and_names_the_next():
    now, lines = [5.0], []
    stages = StageLines(lines.append, clock=lambda: now[0])
    now[0] = 6.25
    stages.done("packages imported", "process group")
    now[0] = 18.25
    stages.done("process group of 2 ranks")
    assert lines == [
        "start     1.2 s  packages imported; next: process group",
        "start    12.0 s  process group of 2 ranks",
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (4353, "4.4 kB"),
        (999_960, "1.0 MB"),
        (1_775_568, "1.8 MB"),
        (15e15, "15,000.0 TB"),
    ],
)
def test_bytes_are_shown_in_the_unit_of_their_size(number, shown):
    assert size(number) == shown


@pytest.mark.parametrize(
    ("number", "text"),
    [(1e12, "1T"), (999.96e9, "1T"), (32.04e9, "32B"), (8_388_608, "8.39M"), (4096, "4.1k"), (12, "12"), (0.5, "0.5")],
)
def test_a_rounded_count_has_the_unit_of_its_size(number, text):
    assert rounded_count(number) == text


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("name", "n", "why"), ("a", "1,000", "x"), ("longer", "2", "")]
    assert aligned_rows(rows, left=(0, 2)) == ["name        n  why", "a       1,000  x", "longer      2"]
    assert aligned_rows(rows)[1] == "a       1,000    x"
