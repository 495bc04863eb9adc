"""The watchdog ends the process that it means to end, whatever of its files and of standard error is broken."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from types import SimpleNamespace

import pytest

from launch.cluster.incidents import Incident, incident_of
from recipe.base.ranks import RESTART
from recipe.base.settings import Watch
from recipe.run.folder import RunFolder
from recipe.run.heartbeats import Heartbeat
from recipe.safety import watchdog
from recipe.safety.watchdog import Watchdog
from tests.conftest import ROOT
from tests.faults.conftest import report
from tests.patience import PATIENCE_S

STUCK = """
import builtins, os, sys, time
from pathlib import Path
from recipe.base.settings import Watch
from recipe.safety import watchdog
from recipe.run.folder import RunFolder

broken, folder = sys.argv[2], RunFolder(Path(sys.argv[1]), 1)
if broken in ("hung", "frozen"): watchdog.SAYING_S = 1.0
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
if broken == "frozen": watchdog.write_heartbeat = lambda *_: time.sleep(60)
with guard:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "broken", ["nothing", "heartbeats", "reading", "stacks", "record", "stderr", "pipe", "hung", "frozen", "all"]
)
def test_a_stuck_process_ends(broken, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, tmp_path, broken],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == RESTART, done.stderr
    if broken not in ("reading", "record", "hung", "frozen", "all"):
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
    guard._keep_beating()
    assert [beat.beat for beat in written] == [3, 4, 5]
    assert capsys.readouterr().err.count("cannot write its heartbeat") == 1


@pytest.fixture
def hung(tmp_path, monkeypatch) -> Callable[..., Incident]:
    """A function that ends ranks of `per_host` on each host by their watchdogs, and says what a supervisor makes of it."""

    def end_all(
        hosts: int, per_host: int, *, gone: Collection[int] = (), before: Callable[[RunFolder], None] | None = None
    ):
        folder, ranks = RunFolder(tmp_path, 1), range(hosts * per_host)
        codes: list[int] = []
        monkeypatch.setattr(watchdog.os, "_exit", codes.append)
        monkeypatch.setenv("WORLD_SIZE", str(len(ranks)))

        def become(rank: int) -> None:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setattr("socket.gethostname", lambda: f"host{rank // per_host}")

        guards = {}
        for rank in ranks:
            if rank not in gone:
                become(rank)
                guards[rank] = Watchdog(folder, Watch())
        ended = set()
        if before is not None:
            before(folder)
            ended = {int(path.stem[-5:]) for path in (tmp_path / "failures").iterdir()}

        def wait(speaker: int) -> None:
            for rank, guard in guards.items():
                if rank not in ended:
                    become(rank)
                    guard._write()
            become(speaker)

        for rank in guards.keys() - ended:
            become(rank)
            monkeypatch.setattr(guards[rank], "_stopped", SimpleNamespace(wait=lambda _, rank=rank: wait(rank)))
            guards[rank]._end_job(900.0)
        assert codes == [RESTART] * len(guards.keys() - ended)
        return incident_of(tmp_path, 1, RESTART)

    return end_all


@pytest.mark.parametrize(("hosts", "per_host"), [(2, 1), (1, 8), (4, 2), (1, 1)])
def test_a_hang_of_all_ranks_alike_blames_no_host(hosts, per_host, hung):
    found = hung(hosts, per_host)
    assert (found.kind, found.rank, found.host) == ("hang", None, None)
    assert "all ranks beat and are at the same place" in found.message
    if hosts == 2:
        report(
            "all ranks aborted alike (a collective that does not end)", found.message.partition("; stacks")[0],
            seconds=None, lost_steps=None, then="nobody's host is blamed; restarted from the newest checkpoint",
        )  # fmt: skip


@pytest.mark.parametrize(("kind", "witness"), [("error", False), ("out_of_memory", False), ("peer_lost", True)])
def test_a_hang_after_a_rank_has_ended_changes_nothing_of_what_that_rank_said(kind, witness, hung):
    def end_one(folder: RunFolder) -> None:
        folder.record_failure(kind, "its own words", rank=1, host="host0", witness=witness)

    found = hung(2, 2, before=end_one)
    assert (found.kind, found.rank) == (("hang", None) if witness else (kind, 1))
    assert ("rank 1 had ended before" if witness else "its own words") in found.message


def test_ranks_without_any_heartbeat_are_named(hung):
    found = hung(2, 2, gone={1, 3})
    assert (found.kind, found.rank) == ("hang", None)
    assert "no heartbeat of this start from rank 1, 3" in found.message


def test_a_hang_in_which_all_ranks_are_at_the_same_place_is_a_hang_that_blames_none(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, 1)
    guard = Watchdog(folder, Watch())
    monkeypatch.setattr(guard, "_stopped", SimpleNamespace(wait=lambda _: False))
    guard._name_culprits(900.0)
    found = incident_of(tmp_path, 1, RESTART)
    assert (found.kind, found.rank) == ("hang", None)
    assert "all ranks beat and are at the same place" in found.message
