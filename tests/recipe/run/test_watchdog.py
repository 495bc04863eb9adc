"""The watchdog ends the process that it means to end, whatever of its files and of standard error is broken."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launch.incidents import incident_of
from recipe.base.heartbeats import Heartbeat
from recipe.base.ranks import RESTART
from recipe.base.settings import Watch
from recipe.run import watchdog
from recipe.run.run_folder import RunFolder
from recipe.run.watchdog import Watchdog
from tests.conftest import ROOT

STUCK = """
import builtins, os, sys, time
from pathlib import Path
from recipe.base.settings import Watch
from recipe.run import watchdog
from recipe.run.run_folder import RunFolder

broken, folder = sys.argv[2], RunFolder(Path(sys.argv[1]), 1)
if broken == "hung": watchdog.SAYING_S = 1.0
guard = watchdog.Watchdog(folder, Watch(heartbeat_s=0.1, no_progress_s=0.1, start_s=0.3))
def refuse(*_, **__):
    raise OSError(5, "Input/output error")
if broken in ("heartbeats", "all"): watchdog.write_heartbeat = refuse
if broken in ("reading", "all"): watchdog.read_heartbeats = refuse
if broken in ("stacks", "all"): watchdog.open = refuse
if broken in ("record", "all"): RunFolder.record_failure = refuse
if broken in ("stderr", "all"): sys.stderr.close()
if broken == "pipe": read, write = os.pipe(); os.close(read); os.dup2(write, 2)
if broken == "hung": watchdog.read_heartbeats = lambda *_: time.sleep(60)
with guard:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "broken", ["nothing", "heartbeats", "reading", "stacks", "record", "stderr", "pipe", "hung", "all"]
)
def test_a_stuck_process_ends(broken, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, tmp_path, broken],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == RESTART, done.stderr
    if broken not in ("reading", "record", "hung", "all"):
        (record,) = (tmp_path / "failures").iterdir()
        assert json.loads(record.read_text())["kind"] == "hang"


def test_a_heartbeat_that_cannot_be_written_is_said_once_and_others_follow(tmp_path, monkeypatch, capsys):
    written: list[Heartbeat] = []
    errors = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]

    def write(folder: object, beat: Heartbeat) -> None:
        if errors:
            raise errors.pop()
        written.append(beat)

    monkeypatch.setattr(watchdog, "write_heartbeat", write)
    guard = Watchdog(RunFolder(tmp_path, 1), Watch())
    beats = iter([False] * 4 + [True])
    monkeypatch.setattr(guard, "_stopped", SimpleNamespace(wait=lambda _: next(beats)))
    guard.run()
    assert [beat.beat for beat in written] == [3, 4, 5]
    assert capsys.readouterr().err.count("cannot write its heartbeat") == 1


def test_a_hang_in_which_all_ranks_are_at_the_same_place_is_a_hang_that_blames_none(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, 1)
    guard = Watchdog(folder, Watch())
    monkeypatch.setattr(guard, "_stopped", SimpleNamespace(wait=lambda _: False))
    guard._name_culprits(900.0)
    found = incident_of(tmp_path, 1, RESTART)
    assert (found.kind, found.rank) == ("hang", None)
    assert "all ranks beat and are at the same place" in found.said
