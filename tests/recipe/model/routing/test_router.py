"""Scores, choice, weights and noise against plain loops over tokens."""

from __future__ import annotations

import pytest
import torch

from recipe.model.routing.router import jitter, router_logits, router_scores, scores_and_choice, weights_of

T, E = 24, 8


def scores(seed: int = 0) -> torch.Tensor:
    return torch.rand(T, E, generator=torch.Generator().manual_seed(seed))


def plain_choice(row: list[float], bias: list[float], top_k: int, n_group: int, topk_group: int) -> set[int]:
    biased = [s + b for s, b in zip(row, bias, strict=True)]
    size = len(row) // n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(n_group)]
    groups.sort(key=lambda members: -sum(sorted((biased[e] for e in members), reverse=True)[:2]))
    eligible = [e for members in groups[:topk_group] for e in members]
    return set(sorted(eligible, key=lambda e: -biased[e])[:top_k])


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize("norm", [True, False])
def test_choice_and_weights_equal_a_loop_over_tokens(n_group, topk_group, norm):
    bias_E = torch.linspace(-0.3, 0.3, E)
    scores_TE, _, experts = scores_and_choice(scores().logit(), bias_E, "sigmoid", 3, n_group, topk_group)
    weights = weights_of(scores_TE, experts, norm_topk_prob=norm, routed_scaling_factor=2.5)
    for t in range(T):
        row = scores_TE[t].tolist()
        assert set(experts[t].tolist()) == plain_choice(row, bias_E.tolist(), 3, n_group, topk_group)
        total = sum(row[e] for e in experts[t].tolist()) if norm else 1.0
        expected = [2.5 * row[e] / total for e in experts[t].tolist()]
        assert weights[t].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_scores_are_fp32_and_bounded(scoring_func):
    generator = torch.Generator().manual_seed(0)
    x_TD, gate_ED = torch.randn(T, 16, generator=generator), torch.randn(E, 16, generator=generator) / 4
    logits = router_logits(x_TD.bfloat16(), gate_ED.bfloat16())
    found = router_scores(logits, scoring_func)
    assert found.dtype == torch.float32
    assert ((found > 0) & (found < 1)).all()
    if scoring_func == "softmax":
        torch.testing.assert_close(found.sum(dim=1), torch.ones(T))


def test_the_gate_matmul_is_exact_where_bf16_is_not():
    # 256 + 1 is not representable in bf16: a bf16 matmul would tie these two experts.
    x = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.bfloat16)
    assert router_logits(x, weight).tolist() == [[256.0, 257.0]]


@pytest.mark.parametrize("bias_E", [None, torch.zeros(E)])
def test_the_choice_has_no_gradient(bias_E):
    _, choice_TE, _ = scores_and_choice(scores().logit().requires_grad_(), bias_E, "sigmoid", 2, 1, 1)
    assert not choice_TE.requires_grad


def test_jitter_is_a_function_of_its_key_within_its_strength():
    x_TD = torch.ones(2000, 8)
    first, again, other = (jitter(x_TD, 0.1, key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0.9
    assert first.max() <= 1.1
    assert first.mean().item() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gates_gradients_are_those_of_an_fp32_matmul_and_no_fp32_copy_is_kept(dtype):
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(T, 16, generator=generator).to(dtype).requires_grad_()
    gate_ED = torch.randn(E, 16, generator=generator).to(dtype).requires_grad_()
    wanted_TE = torch.randn(T, E, generator=generator)
    kept: list[torch.dtype] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        logits = router_logits(x_TD, gate_ED)
    assert set(kept) == {dtype}
    found = torch.autograd.grad(logits, (x_TD, gate_ED), wanted_TE)
    plain = torch.autograd.grad(x_TD.float() @ gate_ED.float().T, (x_TD, gate_ED), wanted_TE)
    for ours, expected in zip(found, plain, strict=True):
        assert torch.equal(ours, expected)
