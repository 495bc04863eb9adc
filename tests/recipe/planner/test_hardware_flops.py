"""What is computed again is counted: all of a layer, all but the down projections, or what is not kept."""

from __future__ import annotations

import pytest

from recipe.base.model_shape import load_model_shape
from recipe.planner.hardware_flops import (
    forward_flops_per_token,
    hardware_flops_per_token,
    recomputed_flops_per_token,
)
from recipe.planner.kept import EVERYTHING, KEEPABLE, Kept
from tests.conftest import ROOT

SHAPE, SEQ = load_model_shape(ROOT / "recipe/configs/models/30b-a3b"), 4096
MODEL = SHAPE.training_flops_per_token(SEQ)
# By hand, of one layer; 3,072 wide, 24 heads of 128 with 4 of keys and values, 6 of 96 experts of 1,408 and a shared one:
PROJECTIONS = 2 * 3072 * (3072 + 2 * 512)
KERNEL = 2 * 2 * 3072 * 2048  # over 2,048 positions on average
OUTPUT = 2 * 3072 * 3072
ROUTER = 2 * 3072 * 96
GATE_UP, SHARED = 6 * 2 * 2 * 3072 * 1408, 2 * 2 * 3072 * 1408
DENSE = 2 * 2 * 3072 * 12288
DENSE_LAYER = PROJECTIONS + KERNEL + OUTPUT + DENSE
MOE_LAYER = PROJECTIONS + KERNEL + OUTPUT + ROUTER + GATE_UP + SHARED


def again(recompute: str, **layers: int) -> float:
    return recomputed_flops_per_token(SHAPE, SEQ, recompute, Kept(tuple(layers.items())))


def test_a_whole_second_forward_pass_is_a_third_of_the_models_flops_without_the_head():
    assert again("none") == 0
    assert again("reentrant") == pytest.approx((MODEL - 6 * SHAPE.parameters()["lm_head"]) / 3, rel=1e-12)
    assert hardware_flops_per_token(SHAPE, SEQ, "none") == MODEL


def test_biases_of_attention_are_counted_as_in_the_models_flops():
    shape = SHAPE.model_copy(update={"attention_bias": True})
    third = (shape.training_flops_per_token(SEQ) - 6 * shape.parameters()["lm_head"]) / 3
    assert recomputed_flops_per_token(shape, SEQ, "reentrant") == pytest.approx(third, rel=1e-12)


@pytest.mark.parametrize("recompute", ["non_reentrant", "selective"])
def test_down_projections_do_not_run_again(recompute):
    assert again(recompute) == DENSE_LAYER + 23 * MOE_LAYER == 4_611_047_424


def test_what_is_kept_does_not_run_again_in_its_layers_alone():
    kept = {"attention": 24, "gate_up": 10, "shared_gate_up": 2, "rows": 24}  # rows are no matmul's
    left = 4_611_047_424 - 24 * KERNEL - (DENSE + 9 * GATE_UP) - SHARED  # the first layer is dense
    assert again("selective", **kept) == left == 2_904_489_984
    assert hardware_flops_per_token(SHAPE, SEQ, "selective", Kept(tuple(kept.items()))) == MODEL + left
    assert again("non_reentrant", **kept) == again("non_reentrant")


def test_with_all_results_kept_the_routers_run_again_alone():
    assert again("selective", **dict.fromkeys(KEEPABLE, 24)) == 23 * ROUTER


def test_whole_layers_compute_nothing_again():
    kept = dict.fromkeys(KEEPABLE, 24)
    assert again("selective", **kept, everything=10) == 14 * ROUTER  # the first layer is dense
    assert again("selective", **kept, **{EVERYTHING: 24}) == 0


def test_the_names_are_those_of_what_can_be_kept():
    names = {name for moe in (False, True) for name in forward_flops_per_token(SHAPE, SEQ, moe=moe)}
    assert names == {*KEEPABLE, "router", "down"} - {"rows"}
