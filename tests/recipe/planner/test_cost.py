"""Checkpoint intervals and what failures cost, against Young's formula and a simulation."""

from __future__ import annotations

import math
import random

import pytest

from recipe.base.hardware import cluster_of
from recipe.planner.cost import RESTART_S, daly_interval_s, reliability


def test_dalys_interval_is_youngs_when_checkpoints_are_cheap():
    assert daly_interval_s(10, 1e6) == pytest.approx(math.sqrt(2 * 10 * 1e6), rel=0.01)


def test_a_checkpoint_longer_than_half_the_mtbf_is_taken_once_per_mtbf():
    assert daly_interval_s(60, 100) == 100


def lost_share(interval: float, stall: float, mtbf: float, seed: int = 0) -> float:
    """Share of the time that made no progress, by drawing failures."""
    random_, clock, kept, target = random.Random(seed), 0.0, 0.0, 2000 * mtbf
    fails = random_.expovariate(1 / mtbf)
    while clock < target:
        if clock + interval + stall <= fails:
            clock, kept = clock + interval + stall, kept + interval
        else:
            clock = fails + RESTART_S
            fails = clock + random_.expovariate(1 / mtbf)
    return 1 - kept / clock


def test_the_interval_loses_less_than_others_and_the_loss_is_what_is_predicted():
    found = reliability(cluster_of("a100-80gb", 1024, "400g"), 30_000_000_000)
    best = lost_share(found.interval_s, found.stall_s, found.mtbf_s)
    assert best == pytest.approx(found.lost_share, rel=0.1)
    for factor in (0.2, 5):
        assert lost_share(factor * found.interval_s, found.stall_s, found.mtbf_s) > best


def test_four_times_the_nodes_fail_four_times_as_often():
    small, large = (reliability(cluster_of("a100-80gb", n, "400g"), 10**9) for n in (256, 1024))
    assert small.mtbf_s == pytest.approx(4 * large.mtbf_s)
    assert large.goodput < small.goodput
