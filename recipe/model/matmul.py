"""Matmuls with an fp32 output, of inputs that may be bf16."""

from __future__ import annotations

import torch


def fp32_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in fp32: products and sums of bf16 inputs are kept as such, by tensor cores where there are any."""
    if a.is_cuda and a.dtype == b.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_fp32_matmul(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b, fp32, in place; on a GPU inside the matmul, without its result in memory beside the total."""
    if a.is_cuda and a.dtype == b.dtype == torch.bfloat16:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a.float() @ b.float()
