"""Router arithmetic against plain loops over tokens."""

from __future__ import annotations

import pytest
import torch

from recipe.model.routing import (
    AttachLoss,
    choose_experts,
    load_balancing_loss,
    router_logits,
    router_scores,
    router_z_loss,
)

T, E, S = 24, 8, 6


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
    scores_TE, bias_E = scores(), torch.linspace(-0.3, 0.3, E)
    weights, experts = choose_experts(
        scores_TE,
        bias_E,
        top_k=3,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=norm,
        routed_scaling_factor=2.5,
    )
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


def test_the_gate_matmul_is_exact_where_bf16_is_not():
    # 256 + 1 is not representable in bf16: a bf16 matmul would tie these two experts.
    x = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.bfloat16)
    assert router_logits(x, weight).tolist() == [[256.0, 257.0]]


def plain_balance(scores_TE: torch.Tensor, experts_TK: torch.Tensor) -> float:
    losses, top_k = [], experts_TK.shape[1]
    for start in range(0, T, S):
        tokens = range(start, start + S)
        loss = 0.0
        for e in range(E):
            fraction = sum(e in experts_TK[t].tolist() for t in tokens) / (S * top_k)
            share = sum(scores_TE[t, e].item() / scores_TE[t].sum().item() for t in tokens) / S
            loss += E * fraction * share
        losses.append(loss)
    return sum(losses) / len(losses)


def test_balance_loss_equals_a_loop_over_tokens():
    scores_TE = scores()
    experts_TK = scores_TE.topk(2).indices
    assert load_balancing_loss(scores_TE, experts_TK, S).item() == pytest.approx(plain_balance(scores_TE, experts_TK))


def test_balance_loss_is_one_when_balanced_and_experts_over_k_when_collapsed():
    even = torch.ones(T, E)
    spread = torch.arange(T * 2).view(T, 2) % E
    assert load_balancing_loss(even, spread, T).item() == pytest.approx(1.0)
    collapsed = torch.full((T, E), 1e-9)
    collapsed[:, :2] = 1.0
    assert load_balancing_loss(collapsed, collapsed.topk(2).indices, T).item() == pytest.approx(E / 2, rel=1e-4)


def test_balance_loss_of_a_batch_is_the_mean_over_its_parts():
    scores_TE = scores()
    experts_TK = scores_TE.topk(2).indices
    whole = load_balancing_loss(scores_TE, experts_TK, S)
    parts = [load_balancing_loss(s, e, S) for s, e in zip(scores_TE.split(2 * S), experts_TK.split(2 * S), strict=True)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_balance_loss_pushes_scores_of_crowded_experts_down():
    scores_TE = torch.full((T, E), 0.5).requires_grad_()
    load_balancing_loss(scores_TE, torch.zeros(T, 1, dtype=torch.long), T).backward()
    gradient = scores_TE.grad.mean(dim=0)
    assert gradient[0] > 0
    assert (gradient[1:] < 0).all()


def test_z_loss_is_the_mean_squared_log_partition():
    logits = torch.randn(T, E)
    expected = sum(torch.log(torch.exp(row).sum()) ** 2 for row in logits) / T
    torch.testing.assert_close(router_z_loss(logits), expected)


def test_an_attached_loss_has_the_gradient_of_an_added_one():
    x = torch.randn(5, requires_grad=True)
    carrier = AttachLoss.apply(x * 2, x.square().sum(), 0.25)
    assert torch.equal(carrier, x * 2)
    carrier.sum().backward()
    attached, x.grad = x.grad, None
    ((x * 2).sum() + 0.25 * x.square().sum()).backward()
    torch.testing.assert_close(attached, x.grad)
