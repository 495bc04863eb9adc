"""Speed and utilisation of known steps on a GPU that only has a name; phases with a clock that is set."""

from __future__ import annotations

import math

import pytest
import torch

from recipe.base.ds_config import RecipeSection, load_ds_config
from recipe.base.hardware import accelerator_named, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Compute
from recipe.planner.kept import NOTHING, Kept
from recipe.planner.plan import Plan
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import RunFacts, Workload
from recipe.telemetry import phases, throughput
from recipe.telemetry.phases import NAMES, PhaseClock
from recipe.telemetry.throughput import Throughput

SHAPE = load_model_shape("recipe/configs/models/1b-a0.3b")
SEQ, RANKS = 2048, 16


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(phases, "time", clock)
    return clock


def reading_of(monkeypatch, clock: Clock, recompute: str, device: str | None, kept: Kept = NOTHING) -> dict:
    """Of two steps of 3 and 1 seconds, each of 40,000 tokens of all ranks."""
    clocked = PhaseClock()  # of the host's clock: there are no CUDA events here
    monkeypatch.setattr(throughput, "PhaseClock", lambda: clocked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 << 30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    counted = Throughput(SHAPE, SEQ, RANKS, Compute(recompute=recompute), kept)
    for seconds in (3.0, 1.0):
        clock.now += seconds
        counted.count(40_000)
    return counted.take()


@pytest.mark.parametrize("recompute", ["none", "reentrant", "non_reentrant", "selective"])
def test_utilisation_is_of_all_ranks_peak_and_agrees_with_the_planners(monkeypatch, clock, recompute):
    ds = load_ds_config("ds_configs/a100_64.json")[0].model_copy(update={"recipe": RecipeSection(kept_gib=1.0)})
    plan = Plan(Workload(SHAPE, cluster_of("a100-80gb", 64, None), ds, RunFacts(SEQ, recompute)))
    found = reading_of(monkeypatch, clock, recompute, "NVIDIA A100-SXM4-80GB", plan.work.kept)
    peak = RANKS * accelerator_named("a100-80gb").bf16_flops
    assert found["tokens_per_s"] == pytest.approx(20_000)
    assert found["mfu"] == pytest.approx(20_000 * SHAPE.training_flops_per_token(SEQ) / peak)
    assert found["memory_gib"] == 3.0
    assert found["step_time_percentiles_s"] == pytest.approx({"p50": 2.0, "p95": 2.9, "max": 3.0})
    assert found["hfu"] / found["mfu"] == pytest.approx(plan.hfu(EXPECTED) / plan.mfu(EXPECTED))
    if recompute == "none":
        assert found["hfu"] == found["mfu"]
    else:  # the head is not recomputed, down projections by torch's reentrant checkpoints alone
        again = {"reentrant": (1.2, 4 / 3), "non_reentrant": (1.15, 1.2), "selective": (1.0, 1.15)}
        least, most = again[recompute]
        assert least < found["hfu"] / found["mfu"] < most


@pytest.mark.parametrize("device", [None, "NVIDIA GeForce RTX 4090"])
def test_an_unknown_device_has_no_utilisation(monkeypatch, clock, device):
    found = reading_of(monkeypatch, clock, "none", device)
    assert found["tokens_per_s"] == pytest.approx(20_000)
    assert found["step_time_s"] == 2.0
    assert not {"mfu", "hfu"} & set(found)


def test_a_reading_of_no_step_and_no_time_is_undefined_and_ends_nothing(clock):
    found = Throughput(SHAPE, SEQ, 1, Compute()).take()
    assert math.isnan(found["tokens_per_s"])
    assert math.isnan(found["step_time_s"])
    assert all(math.isnan(seconds) for seconds in found["step_time_percentiles_s"].values())


def test_the_second_reading_counts_what_came_after_the_first(clock):
    counted = Throughput(SHAPE, SEQ, 1, Compute())
    for tokens, seconds in ((100, 1.0), (300, 2.0)):
        clock.now += seconds
        counted.count(tokens)
        found = counted.take()
    assert found["tokens_per_s"] == 150
    assert found["step_time_percentiles_s"] == {"p50": 2.0, "p95": 2.0, "max": 2.0}


def test_each_phases_time_is_its_own(clock):
    times = PhaseClock()
    expected = dict.fromkeys(NAMES.values(), 0.0)
    clock.now += 0.25  # before the first phase: between steps
    expected["other"] += 0.25
    for power, (phase, name) in enumerate(NAMES.items()):  # a different time for each, whose sums are all different
        times.enter(phase)
        clock.now += 2.0**power
        expected[name] += 2.0**power
    assert times.take(steps=2) == {name: seconds / 2 for name, seconds in expected.items()}
    clock.now += 5.0  # of the phase that is still entered
    times.enter("forward")
    clock.now += 1.0
    assert times.take(steps=1) == {"other": 5.0, "forward": 1.0}
    clock.now += 7.0
    times.enter("backward")
    assert times.take(steps=1) == {"forward": 7.0, "backward": 0.0}
