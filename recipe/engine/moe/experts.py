"""A rank's routed experts on rows grouped by expert: two grouped GEMMs, SwiGLU by the rows' routing weights, and a third.

The grouped GEMMs are autograd functions of ours, which save the parameters and no views of them: under ZeRO-3 a view would
hold the gathered parameter until the backward pass.

Legend: M rows grouped by expert, E experts of this rank, D hidden size, F expert width; I inner dimension and C columns of a GEMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from recipe.engine.deepspeed_private import GroupedExperts, triton_outer_products, triton_products
from recipe.model.recompute import kept_result, recomputing
from recipe.model.routing.dispatch import nobody_reads, weighted_swiglu


@dataclass(frozen=True)
class GroupedGemm:
    """One way to multiply rows [M, ...] by expert; group e ends at row offsets_E[e]."""

    products: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # [M, I], [E, I, C] -> [M, C]
    outer_products: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # [M, C], [M, I] -> [E, C, I]


def _looped_products(rows_MI: torch.Tensor, weight_EIC: torch.Tensor, offsets_E: torch.Tensor) -> torch.Tensor:
    out_MC = rows_MI.new_zeros(rows_MI.shape[0], weight_EIC.shape[2])
    for begin, end, weight_IC in _groups(offsets_E, weight_EIC):
        torch.mm(rows_MI[begin:end], weight_IC, out=out_MC[begin:end])
    return out_MC


def _looped_outer_products(left_MC: torch.Tensor, right_MI: torch.Tensor, offsets_E: torch.Tensor) -> torch.Tensor:
    out_ECI = left_MC.new_empty(offsets_E.numel(), left_MC.shape[1], right_MI.shape[1])
    for begin, end, out_CI in _groups(offsets_E, out_ECI):
        torch.mm(left_MC[begin:end].T, right_MI[begin:end], out=out_CI)
    return out_ECI


def _groups(offsets_E: torch.Tensor, of_experts: torch.Tensor) -> list[tuple[int, int, torch.Tensor]]:
    ends = offsets_E.tolist()
    return list(zip([0, *ends], ends, of_experts, strict=False))


TORCH = GroupedGemm(
    lambda rows, weight, offsets: F.grouped_mm(rows, weight, offs=offsets),
    lambda left, right, offsets: F.grouped_mm(left.T, right, offs=offsets),
)
TRITON = GroupedGemm(triton_products, triton_outer_products)
LOOP = GroupedGemm(_looped_products, _looped_outer_products)


class _GateUp(torch.autograd.Function):
    """Gate and up projections [M, F] of rows; `together` as one GEMM, whose results are halves of rows twice as wide."""

    @staticmethod
    def forward(ctx, rows_MD, gate_EFD, up_EFD, offsets_E, gemm: GroupedGemm, together: bool):
        ctx.save_for_backward(rows_MD, gate_EFD, up_EFD, offsets_E)
        ctx.gemm, ctx.together = gemm, together

        def project() -> tuple[torch.Tensor, ...]:
            if together:
                both = torch.cat((gate_EFD, up_EFD), dim=1)
                return gemm.products(rows_MD, both.transpose(1, 2), offsets_E).chunk(2, dim=1)
            return tuple(gemm.products(rows_MD, weight.transpose(1, 2), offsets_E) for weight in (gate_EFD, up_EFD))

        return kept_result("gate_up", project)

    @staticmethod
    def backward(ctx, grad_gate_MF, grad_up_MF):
        rows_MD, gate_EFD, up_EFD, offsets_E = ctx.saved_tensors
        gemm = ctx.gemm
        if ctx.together:
            grad, both = torch.cat((grad_gate_MF, grad_up_MF), dim=1), torch.cat((gate_EFD, up_EFD), dim=1)
            grad_rows = gemm.products(grad, both, offsets_E)
            grad_weights = gemm.outer_products(grad, rows_MD, offsets_E).chunk(2, dim=1)
            return grad_rows, *grad_weights, None, None, None
        grad_rows = gemm.products(grad_gate_MF, gate_EFD, offsets_E)
        grad_rows += gemm.products(grad_up_MF, up_EFD, offsets_E)
        grad_weights = [gemm.outer_products(grad, rows_MD, offsets_E) for grad in (grad_gate_MF, grad_up_MF)]
        return grad_rows, *grad_weights, None, None, None


class _Down(torch.autograd.Function):
    """Down projection [M, D]; the second pass of a recomputed layer, which ends here, only saves what it was given."""

    @staticmethod
    def forward(ctx, rows_MF, down_EDF, offsets_E, gemm: GroupedGemm):
        ctx.save_for_backward(rows_MF, down_EDF, offsets_E)
        ctx.gemm = gemm
        if recomputing():
            return nobody_reads(rows_MF, rows_MF.shape[0], down_EDF.shape[1])
        return gemm.products(rows_MF, down_EDF.transpose(1, 2), offsets_E)

    @staticmethod
    def backward(ctx, grad_MD):
        rows_MF, down_EDF, offsets_E = ctx.saved_tensors
        grad_MD = grad_MD.contiguous()
        grad_rows = ctx.gemm.products(grad_MD, down_EDF, offsets_E)
        return grad_rows, ctx.gemm.outer_products(grad_MD, rows_MF, offsets_E), None, None


class Journey(Protocol):
    """What the experts need of a part's rows on their way; see recipe/engine/moe/plan.py."""

    @property
    def sizes_E(self) -> torch.Tensor: ...

    def arrive(self, rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def leave(self, rows_MD: torch.Tensor) -> torch.Tensor: ...


class RecipeExperts(GroupedExperts):
    """AutoEP's experts, computed on weighted rows of all parts in one call, for which ZeRO-3 gathers them once."""

    @property
    def gemm(self) -> GroupedGemm:
        if not self.use_grouped_mm:
            return LOOP
        return TRITON if self.use_triton_grouped_mm else TORCH

    def forward(self, departed: Any, journeys: Any) -> Any:
        """Parts' rows and weights, and their journeys; or AutoEP's own rows and sizes, where AutoTP is folded in.

        The tensors of the parts are arguments and results, so that DeepSpeed's hooks see them.
        """
        if isinstance(departed, torch.Tensor):
            return super().forward(departed, journeys)
        returning = []
        for part, journey in zip(departed, journeys, strict=True):
            rows_MD, weight_M = journey.arrive(*part)
            returning.append(journey.leave(self.computed(rows_MD, weight_M, journey.sizes_E)))
        return tuple(returning)

    def computed(self, rows_MD: torch.Tensor, weight_M: torch.Tensor, sizes_E: torch.Tensor) -> torch.Tensor:
        """w2(silu(w1 x) * w3 x * weight) of each expert's rows x; w1, w3 [E, F, D], w2 [E, D, F]."""
        offsets_E = sizes_E.cumsum(0, dtype=torch.int32)
        gate, up = _GateUp.apply(rows_MD, self.w1, self.w3, offsets_E, self.gemm, self.gate_up_impl == "fused")
        return _Down.apply(weighted_swiglu(gate, up, weight_M), self.w2, offsets_E, self.gemm)
