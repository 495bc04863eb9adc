"""Matmuls whose results are wider than their inputs."""

from __future__ import annotations

import torch


def wide_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in fp32: products and sums of bf16 inputs are kept as such, by tensor cores where there are any."""
    if a.is_cuda and a.dtype == b.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
