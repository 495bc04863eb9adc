"""Proxy runs at the same time: each has ranks of its own, and a failure begins no other."""

from __future__ import annotations

import argparse
import threading

import pytest

import launch.proxies
from launch.proxies import add_run_arguments, train_all
from recipe.base.errors import UserError
from recipe.base.model_shape import load_model_shape
from recipe.run.records import EVALUATIONS, EVENTS, append_record
from recipe.scaling.rungs import rungs
from tests.conftest import ROOT


@pytest.fixture
def ladder():
    return rungs(load_model_shape(ROOT / "recipe/configs/models/tiny"), [16, 24], [1, 2], 32, ranks=1)


@pytest.fixture
def runs(tmp_path, ladder):
    """The arguments of runs, whose folders are there."""
    for rung in ladder:
        (tmp_path / rung.name / "run").mkdir(parents=True)
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)

    def of(*words: str) -> argparse.Namespace:
        args = parser.parse_args(words)
        args.output = tmp_path
        return args

    return of


def finish(command) -> None:
    run = command[command.index("--config") + 1].replace("run.yaml", "run")
    sources = {"en": {"bits_per_byte": 1.0, "loss": 2.0}}
    append_record(launch.proxies.Path(run) / EVALUATIONS, {"step": 1, "sources": sources})
    append_record(launch.proxies.Path(run) / EVENTS, {"event": "finished", "step": 1})


def test_as_many_run_at_once_as_asked_and_answers_are_in_their_order(runs, ladder, monkeypatch, capsys):
    two = threading.Barrier(2, timeout=60)

    def call(command, **_) -> int:
        two.wait()
        finish(command)
        return 0

    monkeypatch.setattr(launch.proxies.subprocess, "call", call)
    measured = train_all(ladder, runs("--cpu-ranks", "1", "--at-once", "2"))
    assert [m.size for m in measured] == [rung.size for rung in ladder]
    assert "w24-t2: bits per byte en 1.0000" in capsys.readouterr().out


def test_runs_at_the_same_time_have_gpus_of_their_own(runs, ladder, monkeypatch):
    taken, begun = [], threading.Barrier(2, timeout=60)

    def call(command, **_) -> int:
        taken.append(command[command.index("--include") + 1])
        begun.wait()
        finish(command)
        return 0

    monkeypatch.setattr(launch.proxies.subprocess, "call", call)
    train_all(ladder[:2], runs("--gpus", "2", "--at-once", "2"))
    assert sorted(taken) == ["localhost:0,1", "localhost:2,3"]


def test_after_a_failure_no_other_run_begins(runs, ladder, monkeypatch):
    begun = []

    def call(command, **_) -> int:
        begun.append(command)
        return 1

    monkeypatch.setattr(launch.proxies.subprocess, "call", call)
    with pytest.raises(UserError, match=r"the run w24-t2 ended with exit code 1, see .*log.txt"):
        train_all(ladder, runs("--cpu-ranks", "1"))
    assert len(begun) == 1
