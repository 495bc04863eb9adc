"""Metrics of a step from sums that are known."""

from __future__ import annotations

import math

import pytest
import torch

from recipe.base.run_config.routing import Routing
from recipe.engine.moe.routing_control import RoutingControl, StepSums
from recipe.telemetry.routing_metrics import routing_metrics, source_information


def metrics_of(counts_LOE: list, **scalars: float) -> dict:
    counts = torch.tensor(counts_LOE, dtype=torch.float64)
    layers, sources, experts = counts.shape
    names = ("aux_loss", "z_loss", "entropy", "top1_share", "dropped", "rerouted")
    sums = {name: torch.full((layers,), scalars.get(name, 0.0), dtype=torch.float64) for name in names}
    sums["tokens"] = torch.full((layers,), 10.0, dtype=torch.float64)
    biases = [torch.tensor([3.0, -4.0] + [0.0] * (experts - 2))] * layers
    control = RoutingControl(
        Routing(aux_loss_coef=0.5, z_loss_coef=0.25), biases, top_k=2, seq_length=5, accumulation=1,
        sources=["en", "zh"][:sources], seed=0,
    )  # fmt: skip
    return routing_metrics(StepSums(counts, torch.zeros(layers, experts), sums, torch.ones(layers)), control)


def test_loads_by_layer():
    found = metrics_of([[[8, 4, 4, 0], [0, 0, 0, 0]], [[5, 5, 5, 5], [0, 0, 0, 0]]])
    routing = found["routing"]
    assert routing["load_max_over_mean"] == [2.0, 1.0]
    assert routing["load_min_over_mean"] == [0.0, 1.0]
    assert routing["load_cv"] == pytest.approx([math.sqrt(0.5), 0.0])
    assert routing["dead_experts"] == [1, 0]
    assert routing["bias_norm"] == [5.0, 5.0]
    assert found["expert_load_max_over_mean"] == 2.0
    assert found["tokens_per_expert"] == [[8, 4, 4, 0], [5, 5, 5, 5]]
    assert list(found["sources"]) == ["en"]  # no token of zh in this step


def test_means_are_over_tokens_and_rates_over_assignments():
    scalars = {"aux_loss": 12, "z_loss": 40, "entropy": 5 * math.log(4), "top1_share": 6, "dropped": 5, "rerouted": 2}
    found = metrics_of([[[5, 5, 5, 5]]], **scalars)
    assert (found["aux_loss"], found["scaled_aux_loss"]) == pytest.approx((1.2, 0.6))
    assert (found["z_loss"], found["scaled_z_loss"]) == pytest.approx((4.0, 1.0))
    for name, expected in (("entropy", 0.5), ("top1_share", 0.6), ("drop_rate", 0.25), ("reroute_rate", 0.1)):
        assert found["routing"][name] == pytest.approx([expected]), name


def test_experts_that_split_by_language_tell_all_of_it_and_mixed_ones_nothing():
    split = [[10, 10, 0, 0], [0, 0, 10, 10]]
    mixed = [[6, 2, 6, 2], [9, 3, 9, 3]]
    one = [[5, 5, 5, 5], [0, 0, 0, 0]]
    found = source_information(torch.tensor([split, mixed, one], dtype=torch.float64))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-9)
    of_sources = metrics_of([split])["sources"]
    assert of_sources["en"]["load_max_over_mean"] == [2.0]
    assert of_sources["zh"]["load_max_over_mean"] == [2.0]
