"""A job in a log tells of long phases, at most one line in half a minute; a terminal has a line that is written over."""

from __future__ import annotations

import pytest

from data_prep.core.progress import LOG_EVERY_S, Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(progress, clock, seconds, tasks, name="encode", done=0):
    with progress.phase(name, tasks, done) as phase:
        for _ in range(tasks - done):
            clock.now += seconds
            phase.advance()


def test_a_long_phase_has_a_line_at_most_each_half_a_minute_and_its_end(capsys):
    clock = Clock()
    progress = Progress("tokenize", clock)
    progress.start("reads 3 files, 1.0 MB")
    run(progress, clock, 10, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenize: reads 3 files, 1.0 MB",
        "tokenize: encode 3/10  30%, 1m 10s left",
        "tokenize: encode 6/10  60%, 40.0 s left",
        "tokenize: encode 9/10  90%, 10.0 s left",
        "tokenize: phase encode done in 1m 40s",
    ]


def test_phases_that_are_short_say_nothing_until_half_a_minute_has_passed(capsys):
    clock = Clock()
    progress = Progress("dedup", clock)
    progress.start("begins")
    for _ in range(20):
        run(progress, clock, 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 1 + 40 / LOG_EVERY_S
    assert "dedup: phase encode begins, 2 tasks" in lines


def test_what_an_earlier_run_has_done_is_not_counted_as_speed(capsys):
    clock = Clock()
    progress = Progress("dedup", clock)
    run(progress, clock, 40, 4, done=2)
    begins, first, last, end = capsys.readouterr().err.splitlines()
    assert begins == "dedup: phase encode begins, 4 tasks, 2 of them done before"
    assert (first, last) == ("dedup: encode 3/4  75%, 40.0 s left", "dedup: encode 4/4 100%, 0.0 s left")
    assert end == "dedup: phase encode done in 1m 20s"


def test_a_phase_that_is_done_or_fails_has_no_end(capsys, monkeypatch):
    clock = Clock()
    progress = Progress("dedup", clock)
    run(progress, clock, 1, 2, done=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("data_prep.core.progress.LOG_EVERY_S", 0.0)  # any phase that ends is told
    with pytest.raises(OSError, match="full"), progress.phase("encode", 2, 0):
        raise OSError("disk full")
    assert capsys.readouterr().err == "dedup: phase encode begins, 2 tasks\n"


def test_a_terminal_has_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    clock = Clock()
    run(Progress("dedup", clock), clock, 40, 2)
    printed = capsys.readouterr().err
    assert "\n" not in printed
    assert "dedup: encode" in printed
