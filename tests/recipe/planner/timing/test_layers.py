"""A layer by parts: what runs forward, backward and again, and what parts of an exchange cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.base.hardware import accelerator_named
from recipe.base.model_shape import load_model_shape
from recipe.planner.architecture import architecture_of
from recipe.planner.kept import KEEPABLE
from recipe.planner.timing.kernels import COMPILED, EAGER, FUSED, matmul_s, memory_s
from recipe.planner.timing.layers import Layer, LayerLoad, layer_of
from tests.conftest import ROOT

GPU = accelerator_named("a100-80gb")
SHAPE = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
MODEL = architecture_of(SHAPE)
TOKENS, D = 32768, SHAPE.hidden_size


def layer(software=COMPILED, **changes) -> Layer:
    options = {"moe": True, "tokens": TOKENS, "seq_length": 4096, "expert_ranks": 8} | changes
    return layer_of(GPU, MODEL, software, LayerLoad(**options))


def moved_bytes(one: Layer) -> float:
    """Per row and element, of rows that only move."""
    seconds = sum(part.forward_s for part in one.parts.values() if part.moves)
    return seconds / memory_s(GPU, TOKENS * SHAPE.num_experts_per_tok * D)


def test_where_a_rank_has_all_experts_rows_move_once_each_way_and_are_balanced():
    assert moved_bytes(layer(expert_ranks=1, imbalance=1.5)) == pytest.approx(6)
    assert moved_bytes(layer(imbalance=1.5)) == pytest.approx(1.5 * 14)
    assert moved_bytes(layer(EAGER, expert_ranks=1)) == pytest.approx(30)
    assert layer(expert_ranks=1).host_reads_s == 0 < layer().host_reads_s


def test_rows_that_moved_move_back_and_everything_else_costs_twice():
    part = layer().parts["sum"]
    assert part.backward_s == part.forward_s
    assert layer().parts["activation"].backward_s == 2 * layer().parts["activation"].forward_s
    gate_up = layer().parts["gate_up"]
    added = memory_s(GPU, 6 * TOKENS * SHAPE.num_experts_per_tok * D)  # a row's gradients from both projections
    assert gate_up.backward_s == pytest.approx(2 * gate_up.forward_s + added)


@pytest.mark.parametrize("moe", [True, False])
def test_a_layer_that_runs_again_skips_what_no_gradient_reads(moe):
    one = layer(moe=moe)
    skipped = {"down", "unpermute", "sum", "shared_down"} & one.parts.keys()
    assert one.again_s() == pytest.approx(one.forward_s - one.host_reads_s - one.of(skipped))
    assert one.of(skipped) > one.parts["down"].forward_s * 0.99


@pytest.mark.parametrize("moe", [True, False])
def test_each_result_that_is_kept_saves_what_computes_it(moe):
    one = layer(moe=moe)
    names = [name for name in KEEPABLE if name in one.parts]
    assert names == list(KEEPABLE) if moe else {"gate_up", "attention"} < set(names)
    for name in names:
        assert one.parts[name].forward_s > 0
        assert one.again_s() - one.again_s({name}) == pytest.approx(one.parts[name].forward_s)
    left = set(one.parts_again(names))
    assert left == {"norms", "rotary_and_residuals", "activation"} | (
        {"router", "permute", "shared_activation"} if moe else set()
    )


def test_parts_of_an_exchange_cost_smaller_matmuls_launches_and_the_sum_of_their_gradients():
    whole, halves = layer(imbalance=1.0), layer(imbalance=1.0, parts=2)
    rows = TOKENS * SHAPE.num_experts_per_tok / 12
    of_half = matmul_s(GPU, rows / 2, SHAPE.moe_intermediate_size, D, grouped_over=12, grouped_gemm=GPU.grouped_gemm)
    assert halves.parts["down"].forward_s == pytest.approx(2 * of_half)
    assert halves.parts["down"].forward_s > whole.parts["down"].forward_s
    assert halves.launches_s > whole.launches_s
    held = SHAPE.n_routed_experts / 8 * 3 * D * SHAPE.moe_intermediate_size
    assert whole.gradient_sums_s == 0
    assert halves.gradient_sums_s == pytest.approx(memory_s(GPU, held * 6))
    unchanged = ("attention", "shared_gate_up", "rows", "permute", "sum")
    assert halves.of(unchanged) == pytest.approx(whole.of(unchanged))


def test_fused_norms_and_activations_are_what_selective_recomputation_runs_again():
    one = layer(FUSED)
    assert 0.02 < one.of(("norms", "activation", "shared_activation")) / one.forward_s < 0.15


@pytest.mark.parametrize(("heads", "slow"), [(64, False), (128, True)])
def test_scores_of_heads_whose_rows_are_not_16_bytes_leave_the_tensor_cores(heads, slow):
    model = replace(MODEL, hidden=13824, heads=heads, attention_width=13824)  # heads of 216 and 108
    scores = [
        layer_of(GPU, model, FUSED, LayerLoad(False, 2048, 2048, flash=flash)).parts["attention"]
        for flash in (True, False)
    ]
    assert (scores[1].attention_s > 5 * scores[0].attention_s) == slow
