"""Matrix products of bf16 computed in fp32, for a rehearsal on a CPU.

torch 2.13 multiplies bf16 matrices with a plain loop on a CPU without AVX-512: 37 s for 64 x 3,072 by 3,072 x 8,192 where
fp32 and the two conversions take half a second (x86-64 with AVX2, two busy cores). Shapes, dtypes and bytes stay the same.
"""

from __future__ import annotations

from typing import Any

import torch

from recipe.engine.deepspeed_private import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten._grouped_mm.default}


class Fp32Products(TorchDispatchMode):
    """While active, products of bf16 tensors are computed in fp32 and rounded once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        return func(*map(_as_fp32, args), **kwargs).bfloat16()


def _as_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
