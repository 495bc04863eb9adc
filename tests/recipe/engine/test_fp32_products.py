"""Products of bf16 in fp32: the values of fp32 rounded once, in both passes; other products are left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recipe.engine.fp32_products import Fp32Products

OFFSETS = torch.tensor([3, 3, 8], dtype=torch.int32)
PRODUCTS = {
    "mm": (lambda left, right: left @ right, (8, 16), (16, 32)),
    "addmm": (lambda left, right: F.linear(left, right.T, bias=right[0]), (8, 16), (16, 32)),
    "bmm": (torch.bmm, (3, 8, 16), (3, 16, 32)),
    "grouped": (lambda left, right: F.grouped_mm(left, right, offs=OFFSETS), (8, 16), (3, 16, 32)),
}


def results(product, left, right) -> list[torch.Tensor]:
    """The product and both gradients."""
    left, right = (tensor.clone().requires_grad_() for tensor in (left, right))
    out = product(left, right)
    out.backward(torch.ones_like(out))
    return [out.detach(), left.grad, right.grad]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_gradients_are_those_of_fp32_rounded_once(name):
    product, *shapes = PRODUCTS[name]
    torch.manual_seed(0)
    bf16 = [torch.randn(shape).bfloat16() for shape in shapes]
    exact = results(product, *(tensor.float() for tensor in bf16))
    with Fp32Products():
        found = results(product, *bf16)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 3
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other.bfloat16(), rtol=0, atol=0)


def test_fp32_is_left_alone():
    left, right = torch.randn(8, 16), torch.randn(16, 32)
    with Fp32Products():
        assert torch.equal(left @ right, torch.mm(left, right))
        assert (left.double() @ right.double()).dtype == torch.float64
