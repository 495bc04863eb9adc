"""Errors and their bounds, and choices of experts that one model makes for another: shared by the checks of numbers.

Bounds are argued, not fitted. A bf16 number has 8 bits, so a rounding is wrong by at most half of the last, `HALF_BIT`
of the number, and by `ROUNDING` in the 2-norm of many. Roundings one behind another are independent and add up in
squares; matmuls add their products in fp32. Checks that plant a fault show that the bounds find it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from recipe.model import modeling
from recipe.model.fusion import fused

HALF_BIT = 2.0**-8
# Errors are spread evenly over half a bit, which is 1 / sqrt(3) of it in squares, of numbers between 1 and 2: 2**-9.2.
ROUNDING = 2.0**-9
# fp32 against fp32: other orders of sums, and functions (exp, cos, pow) whose last bits a GPU's library has otherwise.
# TF32 keeps 11 bits of each factor and is wrong by 3e-4 in every matmul.
FP32 = 5e-5


def after_roundings(number: float) -> float:
    """Relative error, in the 2-norm, of what has been rounded to bf16 that often, one rounding behind another."""
    return ROUNDING * number**0.5


def relative_error(computed: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite where something is not finite."""
    computed, expected = computed.detach().cpu().double(), expected.detach().cpu().double()
    error = ((computed - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def share_of_bound(computed: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float) -> float:
    """Largest difference of an element over the bound of that element; at most 1 where all are within."""
    wrong = (computed.detach().cpu().double() - expected.detach().cpu().double()).abs()
    share = torch.where(wrong == 0, 0.0, wrong / bound)
    return float("inf") if share.isnan().any() else share.max().item()


def product_bound(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Most that each element of a @ b may be off: the terms of its sum, each added in fp32, on tensor cores cut off (2**-23)."""
    return a.shape[-1] * 2.0**-23 * (a.detach().cpu().double().abs() @ b.detach().cpu().double().abs())


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, from the CPU for all devices."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


class Choices:
    """Experts that a model's tokens chose, layer after layer, and which of another model's are given in place of its own.

    A rounding decides between two experts whose scores are nearly equal, and then all that follows differs. With the
    same experts, two models' numbers can be compared within a bound.
    """

    def __init__(self) -> None:
        self._of_layer: list[torch.Tensor] = []
        self.agreed: list[float] = []

    @contextmanager
    def made(self) -> Iterator[None]:
        def remembered(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            scores, choice, experts = self._choose(*args)
            self._of_layer.append(experts.cpu())
            return scores, choice, experts

        self._of_layer.clear()
        with self._replaced(remembered):
            yield

    @contextmanager
    def given(self) -> Iterator[None]:
        of_layer: Iterable[torch.Tensor] = iter(self._of_layer)

        def replaced(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            scores, choice, own = self._choose(*args)
            experts = next(of_layer).to(own.device)  # type: ignore[call-overload]
            same = (own.sort(dim=1).values == experts.sort(dim=1).values).all(dim=1)
            self.agreed.append(same.double().mean().item())
            return scores, choice, experts

        with self._replaced(replaced):
            yield

    @contextmanager
    def _replaced(self, function: Any) -> Iterator[None]:
        self._choose = modeling.scores_and_choice
        modeling.scores_and_choice = function
        try:
            yield
        finally:
            modeling.scores_and_choice = self._choose


@contextmanager
def compiling(on: bool, small: bool) -> Iterator[None]:
    """Fusible functions are compiled; where small, on CPU, traced and differentiated alone, for C++ takes a compiler long."""
    traced = torch.compiler.set_stance("default", force_backend="aot_eager") if on and small else nullcontext()
    with traced, fused(on):
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """What `compute.deterministic` turns on, for a while; operations that a GPU has no such algorithm for raise in it."""
    from recipe.engine.build import be_deterministic

    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "torch reads it at a process's first matmul; conftest.py sets it"
    be_deterministic(True)
    try:
        yield
    finally:
        be_deterministic(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
