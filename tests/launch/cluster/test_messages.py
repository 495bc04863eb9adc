"""What the supervisor says of a start, of its end and of what follows."""

from __future__ import annotations

import pytest

from launch.cluster import messages
from launch.cluster.allocation import Hosts
from launch.cluster.decision import Decision
from recipe.base.errors import UserError

FROM_100 = "from the checkpoint of step 100"


def test_a_start_names_its_ranks_hosts_and_checkpoint():
    assert messages.starting(3, 4, {"a": 2, "b": 2}, 1000) == (
        "attempt 3 starts 4 ranks on 2 hosts (a, b), from the checkpoint of step 1,000"
    )
    many = {f"h{number}": 8 for number in range(128)}
    assert "on 128 hosts (h0, h1, h2, h3, h4, h5, h6, h7 and 120 more), from the beginning" in messages.starting(
        1, 1024, many, 0
    )


def test_an_end_says_why_and_what_is_lost():
    assert messages.ended(1, 1, "rank 1 on b killed by SIGKILL", 120, 100) == (
        "attempt 1 ended at step 120 with exit code 1: rank 1 on b killed by SIGKILL; 20 steps after the checkpoint of step 100 are lost"
    )
    assert messages.ended(1, 9, "why", 0, 0) == "attempt 1 ended with exit code 9: why"


@pytest.mark.parametrize(
    ("decision", "blamed", "excluded", "sentences"),
    [
        (Decision(1, 20.0), None, (), [f"attempt 3 starts in 20.0 s, {FROM_100}"]),
        (Decision(1, 300.0), None, (), [f"attempt 3 starts in 5m 00s, {FROM_100}"]),
        (Decision(4, give_up="why"), None, (), ["no other attempt is started"]),
        (
            Decision(1, step_down=True), None, (),
            ["the next attempt has half the micro-batch and twice the accumulation (--step-down-on-oom)", f"attempt 3 starts now, {FROM_100}"],
        ),
        (
            Decision(0, kept_gib=9.5), None, (),
            ["the next attempt keeps at most 9.5 GiB of recomputed layers' results (recipe.kept_gib)", f"attempt 3 starts now, {FROM_100}"],
        ),
        (
            Decision(0, leave_out=frozenset("dc")), None, ("c", "d"),
            ["left out from now on, since they compute other bits: c, d", f"attempt 3 starts now, {FROM_100}"],
        ),
    ],
)  # fmt: skip
def test_what_follows_is_said(decision, blamed, excluded, sentences):
    assert messages.next_start(2, decision, 100, blamed, excluded) == sentences


def test_a_program_that_is_missing_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.cluster.allocation.shutil.which", lambda name: None if name == "pdsh" else name)
    with pytest.raises(
        UserError, match=r"there is no pdsh on this machine, .*; install pdsh, or give --launcher openmpi"
    ):
        Hosts({"a": 1, "b": 1}, [], tmp_path).check_programs()
    Hosts({"a": 1, "b": 1}, ["--launcher", "openmpi"], tmp_path).check_programs()
    Hosts({"localhost": 1}, [], tmp_path).check_programs()
