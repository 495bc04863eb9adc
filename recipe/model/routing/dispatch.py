"""Rows to experts and back: a row for each assignment of a token to an expert, and the weighted sum of what they return.

Both passes of both directions are gathers, so nothing is added up in memory by several at once: the results do not
depend on the order in which a GPU's threads come, and each pass reads and writes its rows once when compiled.

Legend: T tokens, D hidden size, K experts per token, E experts, A = T*K assignments (token-major), N rows.
"""

from __future__ import annotations

import torch

from recipe.model.fusion import fusible

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
        position_A: row of each assignment, -1 where it is dropped.
        assignment_N: assignment of each row, -1 for padding; N = A + E * alignment.
        sizes_E: rows of each group, int32, at least `alignment`.
    """
    experts_A = experts_TK.flatten()
    num_rows = experts_A.numel() + counts_E.numel() * alignment
    sizes_E = (counts_E.clamp(min=1) + alignment - 1) // alignment * alignment
    # Expert E begins past the end: dropped rows go where nothing is read.
    starts = torch.cat((sizes_E.cumsum(0) - sizes_E, sizes_E.new_full((1,), num_rows)))
    firsts = torch.cat((counts_E.cumsum(0) - counts_E, counts_E.sum().view(1)))
    sorted_A, order = _sorted(experts_A)
    rank_A = torch.arange(experts_A.numel(), device=experts_A.device) - firsts[sorted_A]
    sorted_position_A = (starts[sorted_A] + rank_A).clamp(max=num_rows)
    position_A = torch.empty_like(experts_A).scatter_(0, order, sorted_position_A)
    assignment_N = experts_A.new_full((num_rows + 1,), -1).scatter_(0, sorted_position_A, order)[:num_rows]
    return torch.where(position_A < num_rows, position_A, -1), assignment_N, sizes_E.to(torch.int32)


def sorted_positions(experts_TK: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without padding, for the first `num_rows` assignments by expert: position_A and assignment_N."""
    _, order = _sorted(experts_TK.flatten())
    position_A = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return torch.where(position_A < num_rows, position_A, -1), order[:num_rows]


def _sorted(experts_A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Assignments by expert, in their order within each, and where they were; a GPU sorts 16 bits in a quarter of the passes."""
    values, order = experts_A.to(torch.int16).sort(stable=True)
    return values.long(), order


def dispatch(x_TD: torch.Tensor, position_A: torch.Tensor, assignment_N: torch.Tensor) -> torch.Tensor:
    """Rows [N, D] of the tokens that are assigned; zero where the row is padding."""
    return _Dispatch.apply(x_TD, position_A, assignment_N)


def combine(
    rows_ND: torch.Tensor, weights_TK: torch.Tensor, position_A: torch.Tensor, assignment_N: torch.Tensor
) -> torch.Tensor:
    """The sums [T, D] of each token's rows by their weights, added in fp32; what is dropped counts for nothing."""
    return _Combine.apply(rows_ND, weights_TK, position_A, assignment_N)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: torch.Tensor, position_A: torch.Tensor, assignment_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(position_A)
        ctx.top_k = position_A.numel() // x_TD.shape[0]
        return _spread(x_TD, assignment_N, ctx.top_k)

    @staticmethod
    def backward(ctx, grad_ND: torch.Tensor):
        (position_A,) = ctx.saved_tensors
        return _summed(grad_ND, position_A.view(-1, ctx.top_k)), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, weights_TK, position_A, assignment_N) -> torch.Tensor:
        ctx.save_for_backward(rows_ND, weights_TK, position_A, assignment_N)
        return _weighted_sum(rows_ND, weights_TK, position_A.view_as(weights_TK))

    @staticmethod
    def backward(ctx, grad_TD: torch.Tensor):
        rows_ND, weights_TK, position_A, assignment_N = ctx.saved_tensors
        grad_rows = _spread_by_weight(grad_TD, weights_TK, assignment_N)
        return (
            grad_rows,
            _row_products(grad_TD, rows_ND, position_A.view_as(weights_TK)).to(weights_TK.dtype),
            None,
            None,
        )


@fusible(rows_vary=True)
def _spread(x_TD: torch.Tensor, assignment_N: torch.Tensor, top_k: int) -> torch.Tensor:
    token_N = assignment_N.clamp(min=0) // top_k
    return torch.where((assignment_N >= 0).unsqueeze(1), x_TD[token_N], 0)


@fusible(rows_vary=True)
def _spread_by_weight(grad_TD: torch.Tensor, weights_TK: torch.Tensor, assignment_N: torch.Tensor) -> torch.Tensor:
    some_N = assignment_N.clamp(min=0)
    weight_N = torch.where(assignment_N >= 0, weights_TK.flatten()[some_N], 0.0)
    return (grad_TD[some_N // weights_TK.shape[1]] * weight_N.unsqueeze(1)).to(grad_TD.dtype)


@fusible(rows_vary=True)
def _summed(rows_ND: torch.Tensor, position_TK: torch.Tensor) -> torch.Tensor:
    present_TK1 = (position_TK >= 0).unsqueeze(2)
    return torch.where(present_TK1, _picked(rows_ND, position_TK).float(), 0.0).sum(dim=1).to(rows_ND.dtype)


@fusible(rows_vary=True)
def _weighted_sum(rows_ND: torch.Tensor, weights_TK: torch.Tensor, position_TK: torch.Tensor) -> torch.Tensor:
    weights_TK = torch.where(position_TK >= 0, weights_TK, 0.0)
    return (_picked(rows_ND, position_TK) * weights_TK.unsqueeze(2)).sum(dim=1).to(rows_ND.dtype)


@fusible(rows_vary=True)
def _row_products(grad_TD: torch.Tensor, rows_ND: torch.Tensor, position_TK: torch.Tensor) -> torch.Tensor:
    products_TK = (_picked(rows_ND, position_TK).float() * grad_TD.unsqueeze(1)).sum(dim=2)
    return torch.where(position_TK >= 0, products_TK, 0.0)


def _picked(rows_ND: torch.Tensor, position_TK: torch.Tensor) -> torch.Tensor:
    """Rows [T, K, D]; any row where the assignment has none."""
    if rows_ND.shape[0] == 0:  # all are dropped
        return rows_ND.new_zeros(*position_TK.shape, rows_ND.shape[1])
    return rows_ND[position_TK.clamp(min=0)]
