"""Checkpoint intervals and what failures cost, against Young's formula and a simulation; and the bytes of a reshard."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from recipe.base.hardware import cluster_of
from recipe.base.reliability import CONDITIONS, CONSERVATIVE, EXPECTED, OPTIMISTIC, OwnCluster
from recipe.planner.cost import LONGEST_INTERVAL_S, checkpoint_bytes, daly_interval_s, reliability, reshard
from recipe.planner.timing.timeline import RANGE

PARAMETERS = 30_000_000_000
FLAGSHIP = checkpoint_bytes(PARAMETERS, zero_stage=3)


def cluster(gpus: int):
    return cluster_of("a100-80gb", gpus, "400g")


def test_dalys_interval_is_youngs_when_checkpoints_are_cheap():
    assert daly_interval_s(10, 1e6) == pytest.approx(math.sqrt(2 * 10 * 1e6), rel=0.01)


def test_a_checkpoint_longer_than_half_the_mtbf_is_taken_once_per_mtbf():
    assert daly_interval_s(60, 100) == 100


def simulated_goodput(interval: float, stall: float, restart: float, mtbf: float, seed: int = 0) -> float:
    """Share of the time that was work, by drawing failures; one may come while a restart is under way."""
    random_, clock, kept, target = random.Random(seed), 0.0, 0.0, 2000 * mtbf
    fails = random_.expovariate(1 / mtbf)
    while clock < target:
        if clock + interval + stall <= fails:
            clock, kept = clock + interval + stall, kept + interval
            continue
        up = False
        while not up:
            clock = fails
            fails = clock + random_.expovariate(1 / mtbf)
            up = clock + restart <= fails
        clock += restart
    return kept / clock


@pytest.mark.parametrize("conditions", CONDITIONS.values(), ids=CONDITIONS)
def test_the_interval_loses_less_than_others_and_the_loss_is_what_is_predicted(conditions):
    r = reliability(cluster(1024), FLAGSHIP, conditions)
    best = simulated_goodput(r.interval_s, r.stall_s, r.restart_s, r.mtbf_s)
    assert 1 - best == pytest.approx(r.lost_share, rel=0.1)
    for factor in (0.2, 5):
        assert simulated_goodput(factor * r.interval_s, r.stall_s, r.restart_s, r.mtbf_s) < best


def test_four_times_the_nodes_fail_four_times_as_often():
    small, large = (reliability(cluster(n), 12 * 10**9, EXPECTED) for n in (256, 1024))
    assert small.mtbf_s == pytest.approx(4 * large.mtbf_s)
    assert large.goodput < small.goodput


def test_the_expected_failures_are_those_of_llama_3():
    assert reliability(cluster(16_384), FLAGSHIP, EXPECTED).mtbf_s == pytest.approx(54 * 86_400 / 419)


def test_the_range_is_in_order_and_is_that_of_the_time_of_a_step():
    assert [*CONDITIONS] == [assumed.name for assumed in RANGE]
    best, usual, worst = (reliability(cluster(256), FLAGSHIP, c) for c in CONDITIONS.values())
    assert best.goodput > usual.goodput > worst.goodput
    assert best.restart_s < usual.restart_s < worst.restart_s
    assert best.stall_s < usual.stall_s < worst.stall_s


def test_the_range_widens_with_the_failures():
    def width(gpus: int) -> float:
        best, worst = (reliability(cluster(gpus), FLAGSHIP, c).goodput for c in (OPTIMISTIC, CONSERVATIVE))
        return best - worst

    assert 0 < width(64) < width(256) < width(1024)


def test_without_failures_only_checkpoints_are_lost():
    r = reliability(cluster(256), FLAGSHIP, replace(CONSERVATIVE, failures_per_gpu_day=0.0))
    assert r.goodput == pytest.approx(LONGEST_INTERVAL_S / (LONGEST_INTERVAL_S + r.stall_s))


def test_a_cluster_that_fails_before_it_has_restarted_does_not_get_on():
    assert reliability(cluster(1024), FLAGSHIP, replace(CONSERVATIVE, failures_per_gpu_day=1.0)).goodput == 0.01


def test_storage_is_shared_by_the_nodes_up_to_what_the_file_system_takes():
    stalls = [reliability(cluster(gpus), FLAGSHIP, EXPECTED).stall_s - 2 for gpus in (64, 128, 1024, 2048)]
    assert stalls[0] == pytest.approx(2 * stalls[1])
    assert stalls[2] == stalls[3] == pytest.approx(FLAGSHIP / 57.5e9)


def test_what_is_known_of_the_own_cluster_takes_the_place_of_the_range():
    own = OwnCluster(failures_per_gpu_day=0.001, restart_s=600.0, node_bytes_per_s=4e9)
    values = [reliability(cluster(256), FLAGSHIP, own.applied_to(c)) for c in CONDITIONS.values()]
    assert values[0] == values[1] == values[2]
    assert values[0].restart_s == pytest.approx(600 + 2 * FLAGSHIP / (32 * 4e9))
    assert values[0].mtbf_s == pytest.approx(86_400 / 0.256)


def test_a_reshard_reads_and_writes_through_one_host_whatever_the_ranks():
    small, large = (reshard(cluster(n), PARAMETERS, 3, EXPECTED) for n in (64, 1024))
    assert small.convert_s == large.convert_s
    assert small.read_bytes == 4 * 12 * PARAMETERS
    assert small.written_bytes == 12 * PARAMETERS
    assert small.load_s < large.load_s  # each node reads it all, and the file system is one
    slow = reshard(cluster(64), PARAMETERS, 3, CONSERVATIVE)
    assert slow.seconds > small.seconds
    assert slow.convert_s > (small.read_bytes + small.written_bytes) / 0.64e9


def test_only_zero_3_needs_all_states_in_one_process():
    sharded, stage_2 = (reshard(cluster(256), PARAMETERS, stage, EXPECTED) for stage in (3, 2))
    assert sharded.host_memory_bytes == 24 * PARAMETERS
    assert stage_2.host_memory_bytes == 14 * PARAMETERS / 256
    assert stage_2.written_bytes > sharded.written_bytes


def test_the_share_that_llama_3_reports_is_inside_the_range():
    """More than 90% of the time of 54 days on 16,384 H100 trained the model of 405B (arXiv 2407.21783, section 3.3.4)."""
    h100s = cluster_of("h100", 16_384, None)
    best, worst = (
        reliability(h100s, checkpoint_bytes(405_000_000_000, 1), c).goodput for c in (OPTIMISTIC, CONSERVATIVE)
    )
    assert worst < 0.90 < best
