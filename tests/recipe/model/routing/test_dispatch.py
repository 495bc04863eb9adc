"""Rows to experts and back against loops over assignments; their gradients against autograd's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recipe.model.fusion import fused
from recipe.model.routing import dispatch as dispatch_module
from recipe.model.routing.dispatch import (
    combine,
    dispatch,
    grouped_positions,
    received_positions,
    sorted_positions,
    weighted_swiglu,
)

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
    position_A, assignment_A = sorted_positions(experts_TK, E)
    flat, kept = experts_TK.flatten(), int(counts_E.sum())
    by_expert = sorted((a for a in range(T * K) if flat[a] < E), key=lambda a: (flat[a].item(), a))
    assert assignment_A.tolist() == by_expert + [-1] * (T * K - kept)
    assert all(assignment_A[p] == a if p >= 0 else flat[a] == E for a, p in enumerate(position_A.tolist()))


@pytest.mark.parametrize("counts_SE", [[[0, 3, 9], [2, 0, 1], [0, 0, 0]], [[0, 0], [0, 0]], [[8], [1]]])
def test_rows_that_came_by_source_stand_by_expert_in_the_sources_order(counts_SE):
    came = [(e, s, i) for s, counts in enumerate(counts_SE) for e, n in enumerate(counts) for i in range(n)]
    position_N, received_M, sizes_E = received_positions(torch.tensor(counts_SE, dtype=torch.int32), len(came))
    experts = len(counts_SE[0])
    assert sizes_E.tolist() == [max(8, -(-sum(e == x for e, *_ in came) // 8) * 8) for x in range(experts)]
    assert received_M.numel() == len(came) + 8 * experts
    grouped = []
    for expert, size in enumerate(sizes_E.tolist()):
        rows = [came.index(row) for row in sorted(came) if row[0] == expert]
        grouped += rows + [-1] * (size - len(rows))
    assert received_M.tolist() == grouped + [-1] * (received_M.numel() - len(grouped))
    assert [received_M[position].item() for position in position_N] == list(range(len(came)))


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
        rows = dispatch(x, position_A, assignment_N, K)
        weight_N = dispatch(weights.view(-1, 1), position_A, assignment_N, 1).squeeze(1)
        assert (rows[assignment_N < 0] == 0).all()
        assert (weight_N[assignment_N < 0] == 0).all()
        out = combine(weighted_swiglu(rows, (rows * scale_N.unsqueeze(1)).sin(), weight_N), position_A, assignment_N, K)
        (out * upstream).sum().backward()
    found = out.detach(), x.grad, weights.grad
    x, weights = x.detach().requires_grad_(), weights.detach().requires_grad_()
    plain = []
    for t in range(T):
        kept = [k for k in range(K) if experts_TK[t, k] < E]
        terms = [weights[t, k] * F.silu(x[t]) * (x[t] * scale_N[position_A[t * K + k].item()]).sin() for k in kept]
        plain.append(torch.stack(terms).sum(dim=0) if terms else torch.zeros(D))
    (torch.stack(plain) * upstream).sum().backward()
    for ours, expected in zip(found, (torch.stack(plain).detach(), x.grad, weights.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_bf16_rows_are_weighed_in_fp32_and_rounded_once():
    generator = torch.Generator().manual_seed(0)
    gate, up, grad = (torch.randn(40, 24, generator=generator).bfloat16() for _ in range(3))
    weight_N = torch.rand(40, generator=generator)
    given = [t.clone().requires_grad_() for t in (gate, up, weight_N)]
    out = weighted_swiglu(*given)
    out.backward(grad)
    exact = [t.double().requires_grad_() for t in (gate, up, weight_N)]
    expected = F.silu(exact[0]) * exact[1] * exact[2].unsqueeze(1)
    expected.backward(grad.double())
    half_bit = 2.0**-8 * 1.001  # of bf16, and what fp32 rounds before
    for ours, wanted, bound in (
        (out, expected, half_bit), (given[0].grad, exact[0].grad, half_bit), (given[1].grad, exact[1].grad, half_bit),
    ):  # fmt: skip
        assert ours.dtype == torch.bfloat16
        assert ((ours.double() - wanted).abs() <= bound * wanted.abs() + 1e-7).all()
    torch.testing.assert_close(given[2].grad.double(), exact[2].grad, rtol=1e-5, atol=1e-5)


def test_bf16_rows_are_summed_in_fp32():
    """256 + 1 + 1 is 258; in bf16 each 1 would be rounded away."""
    position_A = assignment_N = torch.arange(3)
    rows_ND = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert combine(rows_ND, position_A, assignment_N, 3).tolist() == [[258.0]]


def test_a_sum_saves_nothing_and_is_not_computed_in_a_second_pass(monkeypatch):
    saved = []
    position_A = assignment_N = torch.arange(T * K)
    rows_ND = torch.ones(T * K, D, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda nothing: nothing):
        combine(rows_ND, position_A, assignment_N, K).sum()
    assert saved == []
    monkeypatch.setattr(dispatch_module, "recomputing", lambda: True)
    monkeypatch.setattr(dispatch_module, "_summed", None)
    out = combine(rows_ND, position_A, assignment_N, K)
    assert out.shape == (T, D)
    assert out.untyped_storage().nbytes() == out.element_size()


def test_more_experts_than_a_byte_counts_are_sorted():
    experts_TK = torch.tensor([[200], [2]])
    _, assignment_A = sorted_positions(experts_TK, 256)
    assert assignment_A.tolist() == [1, 0]


def test_a_rank_whose_assignments_are_all_dropped_sends_no_rows_and_has_a_graph():
    experts_TK = torch.full((T, K), E)
    position_A, assignment_A = sorted_positions(experts_TK, E)
    x, weights = torch.randn(T, D, requires_grad=True), torch.rand(T, K, requires_grad=True)
    rows, weight_N1 = (
        dispatch(x, position_A, assignment_A, K)[:0],
        dispatch(weights.view(-1, 1), position_A, assignment_A, 1)[:0],
    )
    back = received_positions(torch.zeros(2, E, dtype=torch.int32), 0)[:2]
    grouped, weight_M = dispatch(rows, *back, 1), dispatch(weight_N1, *back, 1).squeeze(1)
    assert grouped.shape == (8 * E, D)
    out = combine(combine(weighted_swiglu(grouped, grouped, weight_M), *back, 1), position_A, assignment_A, K)
    assert (out == 0).all()
    out.sum().backward()
    assert (x.grad == 0).all()
    assert (weights.grad == 0).all()
