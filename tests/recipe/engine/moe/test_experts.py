"""Experts by each grouped GEMM against a loop over rows; what they save, and what a second pass leaves out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recipe.engine.moe import experts as experts_module
from recipe.engine.moe.experts import LOOP, TORCH, RecipeExperts

D, WIDTH, SIZES = 16, 24, torch.tensor([8, 24, 8], dtype=torch.int32)
WAYS = [{}, {"gate_up_impl": "fused"}, {"use_grouped_mm": False}]


def made(**how) -> tuple[RecipeExperts, torch.Tensor, torch.Tensor]:
    """Experts, their rows, of which the last 8 are no expert's, and weights."""
    generator = torch.Generator().manual_seed(0)
    experts = RecipeExperts(D, WIDTH, len(SIZES), **how)
    for weight in experts.parameters():
        weight.data.normal_(0, 0.3, generator=generator)
    rows = torch.randn(int(SIZES.sum()) + 8, D, generator=generator, requires_grad=True)
    return experts, rows, torch.rand(len(rows), generator=generator, requires_grad=True)


def looped(experts: RecipeExperts, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    expert_M = torch.arange(len(SIZES)).repeat_interleave(SIZES)
    out = []
    for x, weight, e in zip(rows, weights, expert_M, strict=False):
        w1, w3, w2 = experts.w1[e], experts.w3[e], experts.w2[e]
        out.append(weight * (w2 @ (F.silu(w1 @ x) * (w3 @ x))))
    return torch.stack(out)


@pytest.mark.parametrize("how", WAYS)
def test_each_grouped_gemm_is_the_loop_over_rows_with_weights_after_the_experts(how):
    experts, rows, weights = made(**how)
    assert experts.gemm is (TORCH if experts.use_grouped_mm else LOOP)
    used = int(SIZES.sum())
    upstream = torch.randn(used, D, generator=torch.Generator().manual_seed(1))
    inputs = (rows, weights, *experts.parameters())
    out = experts.computed(rows, weights, SIZES)[:used]
    expected = looped(experts, rows, weights)
    found = [out, *torch.autograd.grad((out * upstream).sum(), inputs)]
    wanted = [expected, *torch.autograd.grad((expected * upstream).sum(), inputs)]
    for ours, right in zip(found, wanted, strict=True):
        ours, right = (t[:used] if len(t) == len(rows) else t for t in (ours, right))
        assert ((ours - right).norm() / right.norm()).item() < 1e-6


@pytest.mark.parametrize("how", WAYS)
def test_weights_are_saved_themselves_and_no_view_of_them(how):
    """A view would hold the storage of a parameter that ZeRO-3 has gathered, after it was given up."""
    experts, rows, weights = made(**how)
    saved: list[torch.Tensor] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        experts.computed(rows, weights, SIZES)
    for weight in experts.parameters():
        assert [t for t in saved if t is weight]
        assert [t for t in saved if t is not weight and t.untyped_storage().data_ptr() == weight.data_ptr()] == []
    sizes = {t.numel() for t in saved if not isinstance(t, torch.nn.Parameter)}
    assert max(sizes) <= len(rows) * WIDTH  # nor a copy


def test_in_a_second_pass_the_down_projection_is_not_computed(monkeypatch):
    experts, rows, weights = made(use_grouped_mm=False)
    widths = []

    def products(rows, weight, offsets):
        widths.append(weight.shape[2])
        return LOOP.products(rows, weight, offsets)

    monkeypatch.setattr(RecipeExperts, "gemm", experts_module.GroupedGemm(products, LOOP.outer_products))
    experts.computed(rows, weights, SIZES)
    assert widths == [WIDTH, WIDTH, D]
    monkeypatch.setattr(experts_module, "recomputing", lambda: True)
    out = experts.computed(rows, weights, SIZES)
    assert widths == [WIDTH, WIDTH, D, WIDTH, WIDTH]
    assert out.shape == rows.shape
