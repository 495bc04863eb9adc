"""Matrix products of bf16 computed in fp32, for a rehearsal on a CPU.

torch 2.13 multiplies bf16 matrices with a plain loop on a CPU without AVX-512: 37 s for 64 x 3,072 by 3,072 x 8,192 where
fp32 and the two conversions take half a second (x86-64 with AVX2, two busy cores). Shapes, dtypes and bytes stay the same.
"""

from __future__ import annotations

from typing import Any

import torch

from recipe.engine.deepspeed_private import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}


class Fp32Products(TorchDispatchMode):
    """While active, products of bf16 tensors are computed in fp32 and rounded once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _aten._grouped_mm.default and args[0].dtype == torch.bfloat16:
            return _grouped_product(*args, **kwargs)
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        return func(*map(_as_fp32, args), **kwargs).bfloat16()


def _as_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def _grouped_product(left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """The product of each group with bf16 weights made fp32 group by group, and none where a group is empty.

    Rows by their group's matrix, [M, I] by [E, I, C], or an outer product per group, [C, M] by [M, I] into [E, C, I]. The
    fp32 weights of all groups at once are new memory at each call: of 12 experts of 1,408 x 3,072 a product took 0.25 to
    0.39 CPU-seconds so, most of them page faults, and 0.10 to 0.23 group by group.
    """
    has_matrices, ends = right.dim() == 3, offs.tolist()
    out = left.new_zeros((len(left), right.shape[2]) if has_matrices else (len(ends), len(left), right.shape[1]))
    for group, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if begin == end:
            continue
        if has_matrices:
            out[begin:end] = left[begin:end].float() @ right[group].float()
        else:
            out[group] = left[:, begin:end].float() @ right[begin:end].float()
    return out
