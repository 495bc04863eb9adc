"""Megatron-Core on paper: what fits, and what its overlaps are worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.architecture import architecture_of
from recipe.planner.search.megatron import OVERLAPPED, PLAIN, megatron_core
from recipe.planner.search.strategies import Strategy, estimate, slowest_stage_s
from recipe.planner.workload import RunFacts
from tests.conftest import ROOT

SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
CLUSTER = cluster_of("a100-80gb", 64, "400g")


def on_paper(cluster=CLUSTER):
    return megatron_core(SHAPE, cluster, RunFacts(), 512)


def with_memory(gib: float):
    return replace(CLUSTER, accelerator=replace(CLUSTER.accelerator, memory_gib=gib))


def test_the_fastest_that_fits_is_named_with_and_without_its_overlap():
    (plain, plain_way, plain_time), (overlapped, way, time) = on_paper()
    assert plain.startswith(f"{PLAIN}: TP ")
    assert overlapped.startswith(f"{OVERLAPPED}: TP ")
    assert plain_way.shared_beside
    assert plain_way.exchange_hidden == 0 < way.exchange_hidden <= 0.7
    assert way.recompute != "full"
    assert time.exchange_s < plain_time.exchange_s


def test_less_memory_costs_time_and_too_little_fits_nothing():
    tight = on_paper(with_memory(30.0))
    assert tight[0][2].step_s > on_paper()[0][2].step_s
    assert on_paper(with_memory(5.0)) == []


def timed(**options):
    return estimate(
        architecture_of(SHAPE), CLUSTER, Strategy(ep=8, **options), seq_length=4096, sequences=512, micro_batch=2,
        imbalance=1.1,
    )  # fmt: skip


def test_what_overlaps_is_hidden_but_slows_what_it_is_beside():
    serial, beside, overlapped = timed(), timed(shared_beside=True), timed(exchange_hidden=0.7)
    assert serial.exchange_s > beside.exchange_s > overlapped.exchange_s
    assert overlapped.exchange_s > 0.3 * serial.exchange_s
    assert timed(exchange_hidden=1.0).exchange_s > 0


def test_selective_recompute_runs_norms_and_activations_again():
    none, selective, full = (timed(recompute=policy).compute_s for policy in ("none", "selective", "full"))
    query, rows = SHAPE.num_attention_heads * SHAPE.head_dim, 1.1 * SHAPE.num_experts_per_tok + SHAPE.n_shared_experts
    norms = SHAPE.num_hidden_layers * 12 * (SHAPE.hidden_size + query) / 2
    activations = 6 * (SHAPE.num_moe_layers * rows * SHAPE.moe_intermediate_size + SHAPE.intermediate_size)
    gpu = CLUSTER.accelerator
    tokens = 512 * 4096 / 64
    by_hand = tokens * (norms + activations) / (gpu.hbm_bytes_per_s * gpu.hbm_efficiency)
    assert selective - none == pytest.approx(by_hand, rel=0.01)
    assert selective - none < 0.1 * (full - none)


@pytest.mark.parametrize(
    ("layers", "pp", "virtual", "seconds"),
    [
        (8, 1, 1, 8 + 3),
        (8, 4, 1, 2 + 3),  # the head lies on top of the last stage's layers
        (94, 8, 4, 11 + 3),  # embedding and head take a layer's place: 96 places, 12 a stage
        (61, 8, 1, 7 + 3),  # does not divide: some stages have 8 layers
    ],
)
def test_the_slowest_stage_of_a_pipeline_has_the_head(layers, pp, virtual, seconds):
    assert slowest_stage_s(Strategy(pp=pp, virtual=virtual), layers, 1.0, 3.0) == seconds
