"""The live view puts first what a person must look at."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from recipe import watch
from recipe.reading.alarms import alarms
from recipe.run.heartbeats import Heartbeat, write_heartbeat
from recipe.run.records import last_metrics, read_events, read_starts
from recipe.watch import view
from tests.conftest import run_python


def beat(rank: int) -> Heartbeat:
    return Heartbeat(rank, f"host{rank}", 1, 1, 50, "backward", 7, 9)


def of(run, now: float, ages=None, last=None) -> list[str]:
    beats = {rank: beat(rank) for rank in ages or {}}
    found = alarms(
        read_starts(run.path)[-1], read_events(run.path), last or last_metrics(run.path), ages or {}, beats, now
    )
    return [alarm.message for alarm in found]


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
    run.event("straggler", 40, message="rank 3 is slow")
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
    run.event("attempt_ended", 50, kind="killed", code=1, lost_s=0, message="rank 0 gone")
    done = run_python("recipe/watch.py", run.path, env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "! ended: rank 0 gone" in lines[1]
    assert any("en 51,200 tokens, zh 51,200 tokens" in line for line in lines)


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A function that follows a folder on a terminal, and does between two looks what it is given; what was shown."""

    def follow(run_dir, *between) -> str:
        console = Console(file=io.StringIO(), width=300, height=60, force_terminal=True, color_system=None)
        todo = iter(between)

        def sleep(_: float) -> None:
            if (change := next(todo, None)) is None:
                raise KeyboardInterrupt
            change()

        monkeypatch.setattr("recipe.watch.time.sleep", sleep)
        monkeypatch.setattr("recipe.watch.Console", lambda: console)
        assert watch.main([str(run_dir)]) == 0
        return console.file.getvalue()

    return follow


def test_a_run_that_has_not_begun_is_waited_for_and_then_shown_to_its_end(written, followed, tmp_path):
    def locked() -> None:
        (tmp_path / "written" / "supervisor.lock").touch()

    def begins() -> None:
        (tmp_path / "written" / "supervisor.lock").unlink()
        (tmp_path / "written").rmdir()
        run.append(written())
        run[0].start()

    run: list = []
    shown = followed(
        tmp_path / "written", (tmp_path / "written").mkdir, locked, begins, lambda: run[0].steps(1, 5),
        lambda: run[0].event("finished", 5),
    )  # fmt: skip
    assert "s for the first start in" in shown
    assert "the folder does not exist" in shown
    assert "no process trains in the folder" in shown
    assert "no step logged yet" in shown
    assert "the run is finished, and so is this view" in shown


def test_a_finished_run_is_shown_once_and_one_that_stopped_is_watched_on(run, followed):
    run.event("stopped", 50)
    shown = followed(run.path, lambda: None)
    assert "no process trains in this folder now" in shown
    assert shown.endswith("the view is ended; the run itself is not touched\n")
    run.start(50)
    run.event("finished", 60)
    assert "and so is this view" in followed(run.path)


def test_a_finished_run_that_a_supervisor_holds_may_go_on(run, followed, monkeypatch):
    run.event("finished", 50)
    holders = iter(["process 7 on a"])
    monkeypatch.setattr("recipe.watch._holder", lambda _: next(holders, None))
    assert "and so is this view" in followed(run.path, lambda: None)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_folder_of_something_else_is_not_waited_for(terminal, tmp_path, monkeypatch, capsys):
    (tmp_path / "tokens.bin").touch()
    monkeypatch.setattr("recipe.watch.Console", lambda: Console(force_terminal=terminal))
    assert watch.main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds other files and no run" in capsys.readouterr().err
    assert watch.main([str(tmp_path / "tokens.bin")]) == 2
    assert "is a file; give the run_dir" in capsys.readouterr().err


def test_once_does_not_wait(tmp_path, capsys):
    assert watch.main([str(tmp_path / "later"), "--once"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'later'} holds no run: the folder does not exist; give the run_dir")
    assert message.count("\n") == 1


@pytest.mark.parametrize("script", ["recipe/watch.py", "recipe/report.py"])
def test_what_is_no_run_is_refused(script, tmp_path):
    done = run_python(script, tmp_path)
    assert done.returncode == 2
    assert "holds no run" in done.stderr


# Colour, a link (OSC 8), a new title (OSC 0), the 8-bit form of an escape, text turned round, a line of its own, rich's markup.
HOSTILE = "\x1b[31mred \x1b]8;;http://a.example\x07link\x1b]0;title\x07 \x9b2J \u202eturned\u2066 \r\nline\x00\x7f\ud800 [bold]x[/nothing]"


def hostile_run(run):
    """A run folder with such text wherever a run writes text."""
    start = read_starts(run.path)[-1]
    start["run_config"]["run_dir"] = HOSTILE
    (run.path / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    for kind in ("straggler", HOSTILE):
        run.event(kind, 50, message=HOSTILE, slowest_host=HOSTILE)
    last = last_metrics(run.path)
    last.update(
        step=51, source_tokens={HOSTILE: 1.0}, phase_s={HOSTILE: 0.1}, comm_waited_s={HOSTILE: 0.1}, waited_median_s=0.1,
        slowest_rank=1, slowest_host=HOSTILE, slowest_over_median=2.0,
    )  # fmt: skip
    with open(run.path / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps(last) + "\n")
    evaluation = {"step": 50, "time": run.now, "sources": {HOSTILE: {"bits_per_byte": 1.0}}}
    (run.path / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    (run.path / "heartbeats").mkdir()
    write_heartbeat(run.path / "heartbeats", Heartbeat(0, HOSTILE, 1, 1, 50, HOSTILE, 7, 9))
    return run


def test_what_a_run_folder_says_does_not_command_the_terminal(run, monkeypatch):
    monkeypatch.setattr("recipe.watch.heartbeat_ages", lambda folder, beats: dict.fromkeys(beats, 1e4))
    run = hostile_run(run)
    renamed = run.path.rename(run.path.with_name("run \x1b]0;a\x07\u202e"))
    console = Console(file=io.StringIO(), width=4000, force_terminal=True, color_system=None)
    console.print(view(renamed))
    shown = console.file.getvalue()
    lines = shown.split("\n")
    assert [c for c in set(shown) if not c.isprintable()] == ["\n"]
    clean = "[31mred ]8;;http://a.examplelink]0;title 2J turned   line [bold]x[/nothing]"
    for label in ("! ", "held-out", "data", "step time", "waits", "1 ranks", "step       50"):
        assert any(label in line and clean in line for line in lines), label


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_the_view_is_not_renewed_without_time_between(seconds, run, capsys):
    with pytest.raises(SystemExit) as ended:
        watch.main([str(run.path), "--every", seconds])
    assert ended.value.code == 2
    assert "--every" in capsys.readouterr().err
