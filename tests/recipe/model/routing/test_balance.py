"""Balancing losses and the bias update against plain loops over tokens."""

from __future__ import annotations

import pytest
import torch

from recipe.model.routing.balance import (
    AttachLoss,
    load_balancing_loss,
    router_z_terms,
    updated_bias,
)
from recipe.model.routing.router import score_shares

T, E, S = 24, 8, 6


def scores(seed: int = 0) -> torch.Tensor:
    return torch.rand(T, E, generator=torch.Generator().manual_seed(seed))


def valid(*padding: int) -> torch.Tensor:
    found = torch.ones(T)
    found[list(padding)] = 0.0
    return found


def plain_balance(scores_TE: torch.Tensor, experts_TK: torch.Tensor, padding: tuple[int, ...] = ()) -> float:
    losses, top_k = [], experts_TK.shape[1]
    for start in range(0, T, S):
        tokens = [t for t in range(start, start + S) if t not in padding]
        loss = 0.0
        for e in range(E):
            fraction = sum(e in experts_TK[t].tolist() for t in tokens) / max(1, len(tokens) * top_k)
            share = sum(scores_TE[t, e].item() / scores_TE[t].sum().item() for t in tokens) / max(1, len(tokens))
            loss += E * fraction * share
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("padding", [(), (3, 4, 5, 7), tuple(range(6, 13))])
def test_balance_loss_equals_a_loop_over_tokens_that_count(padding):
    scores_TE = scores()
    experts_TK = scores_TE.topk(2).indices
    found = load_balancing_loss(score_shares(scores_TE), experts_TK, valid(*padding), S)
    assert found.item() == pytest.approx(plain_balance(scores_TE, experts_TK, padding))


def test_balance_loss_is_one_when_balanced_and_experts_over_k_when_collapsed():
    even = score_shares(torch.ones(T, E))
    spread = torch.arange(T * 2).view(T, 2) % E
    assert load_balancing_loss(even, spread, valid(), T).item() == pytest.approx(1.0)
    collapsed = torch.full((T, E), 1e-9)
    collapsed[:, :2] = 1.0
    found = load_balancing_loss(score_shares(collapsed), collapsed.topk(2).indices, valid(), T)
    assert found.item() == pytest.approx(E / 2, rel=1e-4)


def test_balance_loss_pushes_scores_of_crowded_experts_down():
    scores_TE = torch.full((T, E), 0.5).requires_grad_()
    load_balancing_loss(score_shares(scores_TE), torch.zeros(T, 1, dtype=torch.long), valid(), T).backward()
    gradient = scores_TE.grad.mean(dim=0)
    assert gradient[0] > 0
    assert (gradient[1:] < 0).all()


def test_z_terms_are_squared_log_partitions():
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.log(torch.exp(row).sum()) ** 2 for row in logits])
    torch.testing.assert_close(router_z_terms(logits), expected)


def test_an_attached_loss_has_the_gradient_of_an_added_one_with_the_weight_of_the_backward_pass():
    x = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = [torch.tensor(0.0)]
    carrier = AttachLoss.apply(x * 2, x.square(), lambda: weight[0])
    assert torch.equal(carrier, x * 2)
    weight[0] = torch.tensor([0.25, 0.5, 0.0, 1.0, 2.0])
    carrier.sum().backward()
    attached, x.grad = x.grad, None
    ((x * 2).sum() + (weight[0] * x.square()).sum()).backward()
    torch.testing.assert_close(attached, x.grad)


def test_the_bias_moves_by_the_rate_against_the_load_and_keeps_its_mean():
    bias = updated_bias(torch.zeros(2, 4), torch.tensor([[9.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]]), 0.01)
    torch.testing.assert_close(bias, torch.tensor([[-0.015, 0.005, 0.005, 0.005], [0.0, 0.0, 0.0, 0.0]]))
