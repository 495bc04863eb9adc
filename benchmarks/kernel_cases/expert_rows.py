"""What surrounds the experts' grouped GEMMs, at their rows: SwiGLU with routing weights, and the sums of a token's rows.

SwiGLU without weights, as dense and shared MLPs compute it, stands beside it.

Legend: T tokens of a micro-batch, K experts per token, N rows, D hidden size, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernel_cases.measuring import (
    BOTH,
    CUDA,
    DEVICE,
    DTYPE,
    Case,
    NotPossible,
    Sizes,
    gradients,
    random,
    timed,
)
from recipe.model.fusion import fused
from recipe.model.modeling import swiglu
from recipe.model.routing.dispatch import combine, grouped_positions, weighted_swiglu

WEIGHTED_SWIGLU, SWIGLU, SUM = "weighted swiglu", "swiglu", "sum of rows"
FULL = 4  # bytes of a weight in fp32 or of a position


def bytes_of(name: str, sizes: Sizes) -> int:
    """Each operand read and each result written once, forward and backward."""
    wide = sizes.shape.moe_intermediate_size if "swiglu" in name else sizes.shape.hidden_size
    rows, per_assignment = DTYPE.itemsize * sizes.assignments * wide, FULL * sizes.assignments
    tokens = DTYPE.itemsize * sizes.tokens * wide
    return {
        SWIGLU: (3 + 5) * rows,  # gate, up, product; backward these two with the gradients of all three
        WEIGHTED_SWIGLU: (3 + 5) * rows + (1 + 2) * per_assignment,
        SUM: 2 * (rows + tokens + per_assignment),  # and positions
    }[name]


def row_cases(sizes: Sizes) -> Iterator[Case]:
    """Eager ones with the layers; compiled ones behind what calibration needs."""
    shape = {"rows": sizes.assignments, "tokens": sizes.tokens, "hidden": sizes.shape.hidden_size,
             "width": sizes.shape.moe_intermediate_size}  # fmt: skip
    for compiled in (False, True):
        for name in (WEIGHTED_SWIGLU, SWIGLU, SUM):
            yield Case(
                "expert_rows", f"{name}, compiled" if compiled else name, shape,
                lambda name=name, compiled=compiled: _measure(name, sizes, compiled), BOTH, moved=bytes_of(name, sizes),
                cost_s=8.0 if compiled else 1.0, late=1 if compiled else 0,
            )  # fmt: skip


def call_of(name: str, sizes: Sizes) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    """The function and its operands with gradients."""
    D, width, rows = sizes.shape.hidden_size, sizes.shape.moe_intermediate_size, sizes.assignments
    if "swiglu" in name:
        gate, up = (random(rows, width, requires_grad=True) for _ in range(2))
        if name == SWIGLU:
            return swiglu, [gate, up]
        return weighted_swiglu, [gate, up, torch.rand(rows, device=DEVICE, requires_grad=True)]
    top_k, experts = sizes.shape.num_experts_per_tok, sizes.shape.n_routed_experts
    experts_TK = torch.rand(sizes.tokens, experts, device=DEVICE).topk(top_k).indices
    position_A, assignment_N, _ = grouped_positions(experts_TK, torch.bincount(experts_TK.flatten(), minlength=experts))
    rows_ND = random(len(assignment_N), D, requires_grad=True)
    return lambda rows: combine(rows, position_A, assignment_N, top_k), [rows_ND]


def _measure(name: str, sizes: Sizes, compiled: bool) -> dict[str, Any]:
    if compiled and not CUDA:
        raise NotPossible("a CPU compiles these functions for longer than all other kernels take together")
    call, operands = call_of(name, sizes)
    with fused(compiled):
        return timed(gradients(lambda: call(*operands), operands))
