"""What is concluded from heartbeats, step times, corruption checks, errors and histories."""

from __future__ import annotations

import os
from collections import defaultdict
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipe.base.errors import UserError
from recipe.base.run_config.learning_rate import last_before_decay
from recipe.base.run_config.phase import Phase, PhaseLearningRate
from recipe.base.run_config.schedule import Schedule
from recipe.engine.step_guard import robust_z
from recipe.run.heartbeats import Heartbeat, read_heartbeats, state_of_process, write_heartbeat
from recipe.safety.corruption import who_deviates
from recipe.safety.failures import kind_of
from recipe.safety.stragglers import StepTime, judged
from recipe.safety.watchdog import who_holds_up
from tests.conftest import ROOT, launch


def beats(*places: int, moving: bool = True) -> tuple[dict[int, Heartbeat], dict[int, Heartbeat]]:
    def at(beat: int) -> dict[int, Heartbeat]:
        return {r: Heartbeat(r, f"host{r}", 1, 1, 7, "forward", place, beat) for r, place in enumerate(places)}

    return at(1), at(2 if moving else 1)


def test_a_rank_without_a_heartbeat_is_named_before_one_that_is_behind():
    before, after = beats(5, 4, 5)
    culprits, message = who_holds_up(before, after)
    assert [beat.rank for beat in culprits] == [1]
    assert "rank 1 on host1 is in step 7 (forward), the others are further" in message
    after[2] = before[2]
    culprits, message = who_holds_up(before, after)
    assert [beat.rank for beat in culprits] == [2]
    assert "rank 2 on host2 has no heartbeat" in message
    assert who_holds_up(*beats(5, 5))[0] == []


def test_heartbeats_are_overwritten_and_belong_to_an_attempt(tmp_path):
    for place in (100_000, 5):
        write_heartbeat(tmp_path, Heartbeat(3, "h", os.getpid(), 2, 1, "forward", place, 1))
    (tmp_path / "rank_00009.json").write_text('{"half": ')
    assert [beat.place for beat in read_heartbeats(tmp_path, 2).values()] == [5]
    assert read_heartbeats(tmp_path, 1) == {}
    assert state_of_process(os.getpid()) == "running"
    assert state_of_process(2**22 + 1) is None


def test_the_slow_rank_is_the_one_with_most_time_of_its_own():
    times = [
        StepTime(f"host{rank}", 2.0, defaultdict(float, all_gather=waited))
        for rank, waited in enumerate((1.0, 0.2, 1.1, 1.0))
    ]
    metrics, message = judged(times, 1.5)
    assert metrics["slowest_rank"] == 1
    assert metrics["slowest_over_median"] == pytest.approx(1.8)
    assert message is not None
    assert "rank 1 on host1 is slow: 1.800 s of its own in a step, 1.80 times the median" in message
    assert judged(times, 2.0)[1] is None


@pytest.mark.distributed
def test_collectives_that_ranks_start_in_different_orders_end_when_they_are_timed():
    done = launch(2, "tests/recipe/safety/stragglers_worker.py", env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 1 on" in done.stdout
    assert "of its own in a step" in done.stdout


def test_the_bits_of_most_are_the_right_ones():
    assert who_deviates(["a", "a", "b", "a"]) == [2]
    assert who_deviates(["a", "a"]) == []
    assert who_deviates(["a", "b"]) == [0, 1]


def test_a_robust_z_is_not_moved_by_an_outlier_in_its_history():
    history = [2.0 + 0.01 * (i % 5) for i in range(64)]
    assert robust_z(2.02, history) == pytest.approx(0, abs=0.1)
    assert robust_z(3.0, history) > 50
    assert robust_z(3.0, [*history, 100.0]) > 50
    assert robust_z(1.0, history) < 0
    assert robust_z(2.01, [2.0] * 64) < 6  # a flat history makes no spike of noise


def test_a_robust_z_counts_the_standard_deviations_of_a_normal_history():
    normal = NormalDist(2.0, 0.1)
    history = [normal.inv_cdf((number + 0.5) / 1000) for number in range(1000)]
    assert robust_z(2.6, history) == pytest.approx(6.0, rel=0.005)


def test_errors_are_told_apart():
    assert kind_of(torch.OutOfMemoryError("x")) == "out_of_memory"
    assert kind_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) == "out_of_memory"
    assert kind_of(RuntimeError("Connection closed by peer [127.0.0.1]:1")) == "peer_lost"
    assert kind_of(UserError("x")) == "user_error"
    assert kind_of(RuntimeError("shape mismatch")) == "error"
    assert kind_of(KeyError("connection reset")) == "error"


def test_the_last_checkpoint_before_the_decay_is_an_anchor():
    schedule = Schedule(total_tokens=1000, kind="wsd", peak_lr=1e-3, min_lr=0, warmup_tokens=0, decay_tokens=350)
    assert anchors(schedule) == [600]
    assert anchors(Schedule(total_tokens=1000, peak_lr=1e-3, min_lr=0, warmup_tokens=0)) == []
    assert anchors(schedule, Phase(name="decay", learning_rate=PhaseLearningRate(shape="linear", to=0.0))) == []


def anchors(schedule: Schedule, settings: Phase | None = None) -> list[int]:
    """The tokens after which a checkpoint is the last before a decay, in steps of 100."""
    phase: Any = SimpleNamespace(run=SimpleNamespace(schedule=schedule), settings=settings, tokens_per_step=100)
    return [tokens for tokens in range(0, 1001, 100) if last_before_decay(phase, tokens)]
