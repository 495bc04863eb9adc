"""Who is held responsible for the end of an attempt."""

from __future__ import annotations

import itertools
import json

import pytest

from launch.cluster.incidents import incident_of, last_step, signal_of
from recipe.run.folder import RunFolder
from recipe.run.heartbeats import Heartbeat, write_heartbeat
from recipe.run.records import CAUSES


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path, 2)
    folder.heartbeats.mkdir()
    for rank in range(4):
        write_heartbeat(folder.heartbeats, Heartbeat(rank, f"host{rank // 2}", 1, 2, 7, "forward", 40, 3))
    write_heartbeat(folder.heartbeats, Heartbeat(4, "host2", 1, 1, 99, "forward", 40, 3))  # of the start before
    return folder


def test_the_rank_that_left_no_word_was_killed(folder):
    for rank in (0, 1, 3):
        folder.record_failure("peer_lost", "Connection closed", rank=rank, host="h")
    found = incident_of(folder.path, 2, 247)
    assert (found.kind, found.rank, found.host) == ("killed", 2, "host1")
    assert found.message == "rank 2 on host1 killed by SIGKILL"
    assert last_step(folder.path, 2, since=100.0) == 6
    with open(folder.path / "metrics.jsonl", "w") as handle:
        for step, at in ((5, 90.0), (9, 101.0)):
            handle.write(json.dumps({"step": step, "time": at}) + "\n")
        handle.write('{"step": 10, "ti')  # cut by the kill
    assert last_step(folder.path, 2, since=100.0) == 9
    assert last_step(folder.path, 2, since=102.0) == 6  # of an attempt before


def test_a_cause_goes_before_its_witnesses(folder):
    folder.record_failure("peer_lost", "Connection closed", rank=0, host="host0")
    folder.record_failure("out_of_memory", "no memory", rank=3, host="host1")
    found = incident_of(folder.path, 2, 1)
    assert (found.kind, found.rank, found.host, found.message) == ("out_of_memory", 3, "host1", "no memory")


@pytest.mark.parametrize("ranks", [(1, 3), (3, 1)])
@pytest.mark.parametrize(("cause", "consequence"), list(itertools.permutations(CAUSES, 2)))
def test_the_earliest_cause_is_named_and_not_what_follows_from_it(cause, consequence, ranks, folder, monkeypatch):
    times = iter((50.0, 100.0, 101.0))
    monkeypatch.setattr("time.time", lambda: next(times))
    for kind, rank in (("peer_lost", 0), (cause, ranks[0]), (consequence, ranks[1])):
        folder.record_failure(kind, f"the {kind}", rank=rank, host=f"host{rank // 2}")
    incident = incident_of(folder.path, 2, 1)
    assert (incident.kind, incident.message) == (cause, f"the {cause}")
    assert (incident.rank, incident.host) == (ranks[0], f"host{ranks[0] // 2}")


def test_what_is_not_known_is_said(folder, tmp_path):
    for rank in range(4):
        folder.record_failure("peer_lost", "Connection closed", rank=rank, host="h")
    assert incident_of(folder.path, 2, 75).kind == "peer_lost"
    assert incident_of(tmp_path, 9, 1).message.startswith("the ranks left no record, and only the log")


def test_signals_are_read_from_every_form_of_exit_code():
    assert [signal_of(code) for code in (-9, 137, 247, 241, 1, 2, 75)] == [
        "SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", None, None, None,
    ]  # fmt: skip
