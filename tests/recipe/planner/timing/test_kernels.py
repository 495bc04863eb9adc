"""Computation of one GPU: bounds that hold whatever the constants are."""

from __future__ import annotations

import pytest

from recipe.base.hardware import accelerator_named
from recipe.base.model_shape import load_model_shape
from recipe.planner.architecture import architecture_of
from recipe.planner.timing.kernels import EAGER, FUSED, matmul_s
from recipe.planner.timing.layers import LayerLoad, layer_of
from tests.conftest import ROOT

GPU = accelerator_named("a100-80gb")
SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
MODEL = architecture_of(SHAPE)


def test_the_architecture_has_the_parameters_and_flops_of_the_model():
    counts = SHAPE.parameters()
    assert MODEL.total_parameters == sum(counts.values()) - counts["norm"]
    assert MODEL.flops_per_token(4096) == SHAPE.training_flops_per_token(4096)


def test_a_large_matmul_nears_the_gpus_efficiency_and_a_thin_one_its_memory():
    large = 2 * 8192**3 / matmul_s(GPU, 8192, 8192, 8192) / GPU.bf16_flops
    assert 0.95 * GPU.matmul_efficiency < large <= GPU.matmul_efficiency
    thin = matmul_s(GPU, 1, 8192, 8192)
    assert thin >= 2 * 8192**2 / GPU.hbm_bytes_per_s


def test_fewer_rows_per_expert_cost_more_per_row():
    per_row = [
        matmul_s(GPU, rows, 2048, 1024, grouped_over=12, grouped_gemm=GPU.grouped_gemm) / rows
        for rows in (64, 512, 4096)
    ]
    assert per_row[0] > 1.5 * per_row[1] > 1.5 * per_row[2] * 0.7


def layer(software=EAGER, **changes):
    options = {"moe": True, "tokens": 32768, "seq_length": 4096, "expert_ranks": 8} | changes
    return layer_of(GPU, MODEL, software, LayerLoad(**options))


def test_a_busier_rank_takes_longer_and_fused_kernels_less():
    assert layer(imbalance=1.5).forward_s > 1.1 * layer().forward_s
    assert layer(FUSED).forward_s < layer().forward_s


def test_a_small_micro_batch_is_bound_by_launches():
    tiny = layer(tokens=64)
    assert tiny.forward_s == pytest.approx(layer(tokens=32).forward_s, rel=0.01)


def test_no_layer_beats_the_peak():
    time = layer()
    flops = MODEL.flops_per_token(4096) - 6 * MODEL.vocab * MODEL.hidden
    per_layer = flops / MODEL.layers * 32768
    assert time.forward_s + time.backward_s > per_layer / GPU.bf16_flops
