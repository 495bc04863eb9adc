"""Rows to experts and back: a row for each assignment of a token to an expert, and the sum of what they return.

Both passes of both directions are gathers, so nothing is added up in memory by several at once: the results do not
depend on the order in which a GPU's threads come, and each pass reads and writes its rows once when compiled. Not compiled,
results that this file has made are changed in place: on a CPU new memory costs more than the arithmetic.

A row's routing weight is applied between the experts' projections (`weighted_swiglu`), so that the sum is a plain one: its
backward pass needs no row, and a recomputed layer does not compute the rows again.

Legend: T tokens, D hidden size, K experts per token, E experts, S source ranks, A = T*K assignments (token-major), N rows,
F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recipe.model.fusion import fusible
from recipe.model.recompute import kept_result, recomputing

ROW_ALIGNMENT = 8  # rows of an expert in a grouped GEMM: 16 bytes over the 2 of a bf16 element


def grouped_positions(
    experts_TK: torch.Tensor, counts_E: torch.Tensor, alignment: int = ROW_ALIGNMENT
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each assignment's row stands when rows are grouped by expert, each group padded to `alignment`.

    The number of rows follows from the shapes alone, so a GPU's host waits for nothing.

    Args:
        experts_TK: expert E stands for an assignment that is dropped.
        counts_E: assignments of each expert.

    Returns:
        position_A: row of each assignment, -1 where it is dropped; int32, as all positions.
        assignment_N: assignment of each row, -1 for padding; N = A + E * alignment.
        sizes_E: rows of each group, at least `alignment`.
    """
    experts_A = experts_TK.flatten()
    num_rows = experts_A.numel() + counts_E.numel() * alignment
    sizes_E = padded_sizes(counts_E, alignment)
    # Expert E begins past the end: dropped rows go where nothing is read.
    starts = torch.cat((sizes_E.cumsum(0) - sizes_E, sizes_E.new_full((1,), num_rows)))
    firsts = torch.cat((counts_E.cumsum(0) - counts_E, counts_E.sum().view(1)))
    sorted_A, order = _sorted(experts_A)
    rank_A = torch.arange(experts_A.numel(), device=experts_A.device) - firsts[sorted_A]
    sorted_position_A = (starts[sorted_A] + rank_A).clamp(max=num_rows)
    position_A = torch.empty_like(order).scatter_(0, order, sorted_position_A)
    assignment_N = order.new_full((num_rows + 1,), -1).scatter_(0, sorted_position_A, order)[:num_rows]
    return torch.where(position_A < num_rows, position_A, -1).int(), assignment_N.int(), sizes_E


def sorted_positions(experts_TK: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without padding: position_A and assignment_A, where dropped assignments' rows, -1, come last."""
    experts_A = experts_TK.flatten()
    sorted_A, order = _sorted(experts_A)
    position_A = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    kept_A, sorted_kept_A = experts_A < num_experts, sorted_A < num_experts
    return torch.where(kept_A, position_A, -1).int(), torch.where(sorted_kept_A, order, -1).int()


def received_positions(
    counts_SE: torch.Tensor, num_received: int, alignment: int = ROW_ALIGNMENT
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where rows that came by source rank, and of each by expert, stand when grouped by expert and padded.

    Args:
        counts_SE: rows that each source sent to each of this rank's experts; `num_received` in all.

    Returns:
        position_N of each received row, received_M of each grouped row, -1 for padding, and sizes_E of the groups.
    """
    sizes_E = padded_sizes(counts_SE.sum(dim=0), alignment)
    groups_SE = sizes_E.cumsum(0) - sizes_E + counts_SE.cumsum(0) - counts_SE
    ends_X = counts_SE.flatten().cumsum(0)  # of the segments that came
    shifts_X = groups_SE.flatten() - (ends_X - counts_SE.flatten())
    received_N = torch.arange(num_received, device=counts_SE.device)
    position_N = received_N + shifts_X[torch.searchsorted(ends_X, received_N, right=True)]
    received_M = received_N.new_full((num_received + sizes_E.numel() * alignment,), -1)
    return position_N.int(), received_M.scatter_(0, position_N, received_N).int(), sizes_E


def padded_sizes(counts_E: torch.Tensor, alignment: int) -> torch.Tensor:
    """Rows of each expert's group, int32; also an expert without assignments has a group."""
    return ((counts_E.clamp(min=1) + alignment - 1) // alignment * alignment).int()


def _sorted(experts_A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Assignments by expert, in their order within each, and where they were; a GPU sorts 16 bits in a quarter of the passes."""
    values, order = experts_A.to(torch.int16).sort(stable=True)
    return values.long(), order


def dispatch(
    x_TD: torch.Tensor, position_A: torch.Tensor, assignment_N: torch.Tensor, top_k: int, keep: str | None = None
) -> torch.Tensor:
    """Rows [N, D] of the tokens that are assigned, zero for padding; a recomputed layer may keep them, by the name `keep`."""
    return _Dispatch.apply(x_TD, position_A, assignment_N, top_k, keep)


def combine(rows_ND: torch.Tensor, position_A: torch.Tensor, assignment_N: torch.Tensor, top_k: int) -> torch.Tensor:
    """The sums [T, D] of each token's rows, added in fp32; what is dropped counts for nothing.

    Saves nothing through autograd, so that a recomputation ends before it; there it returns memory as it stands.
    """
    return _Combine.apply(rows_ND, position_A, assignment_N, top_k)


def weighted_swiglu(gate_NF: torch.Tensor, up_NF: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up * weight, an fp32 weight for each row (arXiv 2002.05202); all computed in fp32."""
    return _WeightedSwiglu.apply(gate_NF, up_NF, weight_N)


def nobody_reads(like: torch.Tensor, *size: int) -> torch.Tensor:
    """Stands for a result that only the second pass's output needs, which nothing reads: one element, whatever the size."""
    return like.new_empty(()).expand(size)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, position_A, assignment_N, top_k, keep) -> torch.Tensor:
        ctx.position_A, ctx.top_k = position_A, top_k
        if keep is None:
            return _spread(x_TD, assignment_N, top_k)
        return kept_result(keep, lambda: _spread(x_TD, assignment_N, top_k))

    @staticmethod
    def backward(ctx, grad_ND: torch.Tensor):
        return _returned(grad_ND, ctx.position_A, ctx.top_k), None, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, position_A, assignment_N, top_k) -> torch.Tensor:
        # Rows of assignments that are dropped come last, if they come.
        ctx.assignment_N, ctx.top_k = assignment_N[: rows_ND.shape[0]], top_k
        if recomputing():
            return nobody_reads(rows_ND, position_A.numel() // top_k, rows_ND.shape[1])
        return _returned(rows_ND, position_A, top_k)

    @staticmethod
    def backward(ctx, grad_TD: torch.Tensor):
        return _spread(grad_TD, ctx.assignment_N, ctx.top_k), None, None, None


class _WeightedSwiglu(torch.autograd.Function):
    """The weight's gradient comes from what is recomputed, not from the experts' outputs."""

    @staticmethod
    def forward(ctx, gate_NF, up_NF, weight_N) -> torch.Tensor:
        ctx.save_for_backward(gate_NF, up_NF, weight_N)
        return _weighted_swiglu(gate_NF, up_NF, weight_N)

    @staticmethod
    def backward(ctx, grad_NF: torch.Tensor):
        return _weighted_swiglu_gradients(*ctx.saved_tensors, grad_NF)


def _returned(rows_ND: torch.Tensor, position_A: torch.Tensor, top_k: int) -> torch.Tensor:
    """Sums of rows by token; a sum of one is a gather."""
    if top_k == 1:
        return _spread(rows_ND, position_A, 1)
    return _summed(rows_ND, position_A.view(-1, top_k))


@fusible(rows_vary=True)
def _spread(x_TD: torch.Tensor, assignment_N: torch.Tensor, top_k: int) -> torch.Tensor:
    if x_TD.shape[0] == 0:  # no token came, or all are dropped: there is padding alone
        return x_TD.new_zeros(assignment_N.shape[0], x_TD.shape[1])
    rows_ND = x_TD.index_select(0, assignment_N.clamp(min=0) // top_k)
    return rows_ND.masked_fill_((assignment_N < 0).unsqueeze(1), 0)


@fusible(rows_vary=True)
def _summed(rows_ND: torch.Tensor, position_TK: torch.Tensor) -> torch.Tensor:
    if rows_ND.shape[0] == 0:
        return rows_ND.new_zeros(position_TK.shape[0], rows_ND.shape[1])
    rows_TKD = rows_ND.index_select(0, position_TK.clamp(min=0).flatten()).view(*position_TK.shape, -1)
    present = rows_TKD.float().masked_fill_((position_TK < 0).unsqueeze(2), 0)
    return present.sum(dim=1).to(rows_ND.dtype)


@fusible(rows_vary=True)
def _weighted_swiglu(gate_NF: torch.Tensor, up_NF: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    return F.silu(gate_NF.float()).mul_(up_NF.float()).mul_(weight_N.unsqueeze(1)).to(gate_NF.dtype)


@fusible(rows_vary=True)
def _weighted_swiglu_gradients(
    gate_NF: torch.Tensor, up_NF: torch.Tensor, weight_N: torch.Tensor, grad_NF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of gate, up and weight."""
    gate, up, grad, weight_N1 = gate_NF.float(), up_NF.float(), grad_NF.float(), weight_N.unsqueeze(1)
    unweighted = F.silu(gate).mul_(grad)
    grad_weight = (unweighted * up).sum(dim=1)
    grad_gate = torch.ops.aten.silu_backward((grad * up).mul_(weight_N1), gate)
    return grad_gate.to(gate_NF.dtype), unweighted.mul_(weight_N1).to(up_NF.dtype), grad_weight
