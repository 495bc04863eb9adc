"""Rows to experts and back against loops over assignments; their gradients against autograd's own."""

from __future__ import annotations

import pytest
import torch

from recipe.model.fusion import fused
from recipe.model.routing.dispatch import combine, dispatch, grouped_positions, sorted_positions

T, D, E, K = 13, 6, 5, 2


def routed(dropped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts of each token, the last one empty; every fifth assignment dropped if asked."""
    experts_TK = torch.stack([torch.randperm(E - 1, generator=torch.Generator().manual_seed(t))[:K] for t in range(T)])
    if dropped:
        experts_TK.view(-1)[::5] = E
    return experts_TK, torch.bincount(experts_TK.flatten(), minlength=E + 1)[:E].to(torch.int32)


@pytest.mark.parametrize("dropped", [False, True])
def test_each_group_has_its_experts_assignments_in_order_and_then_padding(dropped):
    experts_TK, counts_E = routed(dropped)
    position_A, assignment_N, sizes_E = grouped_positions(experts_TK, counts_E)
    assert assignment_N.numel() == T * K + 8 * E
    assert sizes_E.tolist() == [max(8, -(-count // 8) * 8) for count in counts_E.tolist()]
    start = 0
    for expert, size in enumerate(sizes_E.tolist()):
        mine = [a for a, e in enumerate(experts_TK.flatten().tolist()) if e == expert]
        assert assignment_N[start : start + size].tolist() == mine + [-1] * (size - len(mine))
        assert position_A[mine].tolist() == list(range(start, start + len(mine)))
        start += size
    assert (assignment_N[start:] == -1).all()
    assert (position_A[experts_TK.flatten() == E] == -1).all()


def test_without_padding_the_first_rows_are_the_kept_ones_by_expert():
    experts_TK, counts_E = routed(dropped=True)
    position_A, assignment_N = sorted_positions(experts_TK, int(counts_E.sum()))
    flat = experts_TK.flatten()
    assert assignment_N.tolist() == sorted((a for a in range(T * K) if flat[a] < E), key=lambda a: (flat[a].item(), a))
    assert all(assignment_N[p] == a if p >= 0 else flat[a] == E for a, p in enumerate(position_A.tolist()))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dropped", [False, True])
def test_rows_sums_and_gradients_equal_a_loop_over_assignments(dropped, compiled):
    experts_TK, counts_E = routed(dropped)
    position_A, assignment_N, _ = grouped_positions(experts_TK, counts_E)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, D, generator=generator, requires_grad=True)
    weights = torch.rand(T, K, generator=generator, requires_grad=True)
    scale_N = torch.arange(1.0, assignment_N.numel() + 1)
    upstream = torch.randn(T, D, generator=generator)
    with fused(compiled):
        rows = dispatch(x, position_A, assignment_N)
        assert (rows[assignment_N < 0] == 0).all()
        out = combine((rows * scale_N.unsqueeze(1)).sin(), weights, position_A, assignment_N)
        (out * upstream).sum().backward()
    found = out.detach(), x.grad, weights.grad
    x, weights = x.detach().requires_grad_(), weights.detach().requires_grad_()
    plain = []
    for t in range(T):
        kept = [k for k in range(K) if experts_TK[t, k] < E]
        terms = [weights[t, k] * (x[t] * scale_N[position_A[t * K + k]]).sin() for k in kept]
        plain.append(torch.stack(terms).sum(dim=0) if terms else torch.zeros(D))
    (torch.stack(plain) * upstream).sum().backward()
    for ours, expected in zip(found, (torch.stack(plain).detach(), x.grad, weights.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_bf16_rows_are_weighed_in_fp32():
    """1 + 2**-9 is no bf16 number: rounded to one, these weights' sum of equal rows with opposite signs is zero."""
    position_A, assignment_N = torch.tensor([0, 1]), torch.tensor([0, 1])
    rows_ND = torch.tensor([[1.0], [-1.0]], dtype=torch.bfloat16).requires_grad_()
    weights_TK = torch.tensor([[1.0 + 2**-9, 1.0]]).requires_grad_()
    out = combine(rows_ND, weights_TK, position_A, assignment_N)
    assert out.tolist() == [[2**-9]]


def test_more_experts_than_a_byte_counts_are_sorted():
    experts_TK = torch.tensor([[200], [2]])
    _, assignment_N = sorted_positions(experts_TK, 2)
    assert assignment_N.tolist() == [1, 0]


def test_a_rank_whose_assignments_are_all_dropped_has_no_rows_and_a_graph():
    experts_TK = torch.full((T, K), E)
    position_A, assignment_N = sorted_positions(experts_TK, 0)
    x, weights = torch.randn(T, D, requires_grad=True), torch.rand(T, K, requires_grad=True)
    rows = dispatch(x, position_A, assignment_N)
    assert rows.shape == (0, D)
    out = combine(rows, weights, position_A, assignment_N)
    assert (out == 0).all()
    out.sum().backward()
    assert (x.grad == 0).all()
    assert (weights.grad == 0).all()
