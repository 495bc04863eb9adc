"""Matmuls with fp32 results and the loss in chunks on a GPU: sums in fp32, gradients as near as those of whole logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from recipe.model import loss as losses
from recipe.model.loss import summed_loss, token_scores
from recipe.model.matmul import add_fp32_matmul, fp32_matmul
from tests.gpu.numbers import (
    FP32,
    HALF_BIT,
    after_roundings,
    compiling,
    deterministic,
    drawn,
    product_bound,
    relative_error,
    share_of_bound,
)

CHUNK = 37  # tokens, which divide no batch here
# Roundings: of logits, whose matmul counts twice for its sum may be split, and which are up to some times 1 before e is
# taken to their power (3), of the gradient by them (1), of the matmul with it (2), and of three times the result (1).
GRADIENTS = 8
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def inputs(small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head of a vocabulary that nothing divides, and targets of which some count for nothing; bf16 numbers in fp32."""
    tokens, width, vocab = (101, 64, 1003) if small else (1021, 512, 20_011)
    hidden = drawn(tokens, width, dtype=torch.bfloat16).float()
    weight = drawn(vocab, width, seed=1, scale=width**-0.5, dtype=torch.bfloat16).float()
    targets = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    targets[::7] = -100
    targets[-1] = vocab - 1
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def in_chunks(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return summed_loss(hidden, weight, targets, CHUNK)


def loss_and_gradients(
    loss_of: Loss, small: bool, device: torch.device | str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, and the gradients of the hidden states and of the weight of three times the loss."""
    hidden, weight, targets = inputs(small)
    hidden, weight = (t.to(device, dtype).requires_grad_() for t in (hidden, weight))
    loss = loss_of(hidden, weight, targets.to(device))
    return loss.detach(), *torch.autograd.grad(3 * loss, (hidden, weight))


@cache
def expected_of(small: bool) -> tuple[torch.Tensor, ...]:
    return loss_and_gradients(plain, small, "cpu", torch.float32)


def errors_of(loss_of: Loss, small: bool, device: torch.device | str, dtype: torch.dtype) -> list[float]:
    results = loss_and_gradients(loss_of, small, device, dtype)
    return [relative_error(result, wanted) for result, wanted in zip(results, expected_of(small), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_products_are_fp32_sums(dtype, device, small, measured):
    """Products of bf16 or fp32 matrices, laid out in any way, are exact up to fp32 sums, also added in place."""
    rows, inner, columns = (33, 96, 20) if small else (1021, 512, 1003)
    a, b = drawn(rows, inner, dtype=dtype), drawn(inner, columns, seed=1, dtype=dtype)
    wide = drawn(inner, 2 * columns, seed=1, dtype=dtype)
    start = drawn(rows, columns, seed=2)
    layouts = {
        "rows by rows": (a.to(device), b.to(device)),
        "transposed": (a.T.contiguous().to(device).T, b.T.contiguous().to(device).T),
        "every other column": (a.to(device), wide.to(device)[:, ::2]),
    }
    shares, errors = {}, []
    for layout, (x, y) in layouts.items():
        exact, bound = x.cpu().double() @ y.cpu().double(), product_bound(x, y)
        product = fp32_matmul(x, y)
        assert product.dtype == torch.float32
        shares[layout] = share_of_bound(product, exact, bound)
        errors.append(relative_error(product, exact))
        total = start.clone().to(device)
        at = total.data_ptr()
        for _ in range(3):
            add_fp32_matmul(total, x, y)
        assert total.data_ptr() == at
        added = 3 * bound + 2.0**-22 * (start.double().abs() + 3 * exact.abs())  # the total is rounded, too
        shares[f"{layout}, added"] = share_of_bound(total, start.double() + 3 * exact, added)
    rounded = share_of_bound(
        fp32_matmul(*layouts["transposed"]).bfloat16(), a.double() @ b.double(), product_bound(a, b)
    )
    measured.update(
        {"share of the bound": max(shares.values()), "a bf16 product's": rounded, "relative error": max(errors)}
    )
    assert max(shares.values()) <= 1, shares
    assert max(errors) <= FP32  # which TF32 is beyond
    assert rounded > 3


def test_small_gradients_are_not_lost_in_the_sum(device, measured):
    """The weight's gradient is summed in fp32: of 512 equal tokens, a chunk each, that of all at once to 0.2%."""
    hidden, weight, targets = inputs(small=True)
    hidden, targets = hidden[1:2].expand(512, -1).contiguous(), targets[1:2].expand(512)
    gradients = []
    for chunk_tokens in (1, 512):
        head = weight.to(device, torch.bfloat16).requires_grad_()
        summed_loss(hidden.to(device, torch.bfloat16), head, targets.to(device), chunk_tokens).backward()
        gradients.append(head.grad)
    measured["relative error"] = relative_error(*gradients)
    assert measured["relative error"] < 2e-3


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_loss_in_chunks_is_the_plain_one(compiled, device, small, measured):
    """Loss and gradients in chunks are those of whole logits in fp32 on CPU.

    To 5e-5 in fp32; in bf16 the loss to 0.1%, gradients to 0.6%, and to three roundings more than those of whole logits.
    """
    with compiling(compiled, small):
        in_fp32 = errors_of(in_chunks, small, device, torch.float32)
        loss, *gradients = errors_of(in_chunks, small, device, torch.bfloat16)
    _, *plain_gradients = errors_of(plain, small, device, torch.bfloat16)
    measured.update({"worst error in fp32": max(in_fp32), "error of the bf16 loss": loss,
                     "worst error of a bf16 gradient": max(gradients), "whole logits'": max(plain_gradients)})  # fmt: skip
    assert max(in_fp32) <= FP32
    # Of a token's loss only the logits are rounded, and their errors are independent over tokens.
    assert loss <= HALF_BIT / 4
    assert max(gradients) <= after_roundings(GRADIENTS)
    # Theirs come from three times the loss, ours are rounded before three times them are: a number of 8 bits times 3 falls
    # halfway between two such numbers more often than not (2). A chunk's few rows may split a sum that many rows do not (1).
    assert max(gradients) <= math.hypot(max(plain_gradients), after_roundings(3))


FAULTS: dict[str, Loss] = {
    "mean for sum": lambda h, w, t: in_chunks(h, w, t) / (t != -100).sum(),
    "padding counts": lambda h, w, t: in_chunks(h, w, t.clamp(min=0)),
    "targets by one off": lambda h, w, t: in_chunks(h, w, t.roll(1)),
}


@pytest.mark.parametrize("fault", [*FAULTS, "no one-hot in the gradient"])
def test_a_planted_fault_is_beyond_the_bounds(fault, device, small, measured, monkeypatch):
    """A fault that is planted in the bf16 loss is at least three times beyond the bounds."""
    if fault not in FAULTS:
        gradient_of = losses.loss_and_gradient

        def without_targets(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loss, gradient = gradient_of(logits, targets)
            return loss, gradient.scatter(1, targets.clamp(min=0).unsqueeze(1), 0)  # softmax without the one-hot

        monkeypatch.setattr(losses, "loss_and_gradient", without_targets)
    loss, *gradients = errors_of(FAULTS.get(fault, in_chunks), small, device, torch.bfloat16)
    measured.update({"error of the loss": loss, "worst error of a gradient": max(gradients)})
    assert max(loss / (HALF_BIT / 4), max(gradients) / after_roundings(GRADIENTS)) > 3


def test_scores_of_tokens_are_those_of_whole_logits(device, small, measured):
    """Each target's log-probability is that of CPU, and the most probable token is the same.

    In fp32, to 5e-5, and but for ties within 1e-4.
    """
    hidden, weight, targets = inputs(small)
    logits = hidden.double() @ weight.double().T
    best, second = logits.topk(2, dim=1).values.unbind(dim=1)
    targets[3::4] = logits.argmax(dim=1)[3::4]
    counted = targets != -100
    scores = token_scores(hidden.to(device), weight.to(device), targets.to(device), CHUNK).cpu()
    expected = logits.log_softmax(dim=1).gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    measured["worst relative error"] = relative_error(scores[counted, 0], expected[counted])
    assert measured["worst relative error"] <= FP32
    clear = counted & (best - second > 1e-4)
    assert torch.equal(scores[clear, 1].bool(), (logits.argmax(dim=1) == targets)[clear])
    assert not scores[~counted].any()


def test_the_loss_is_deterministic(device, small, measured):
    """With deterministic algorithms the loss and its gradients have the same bits twice; no operation is refused."""
    runs = []
    with deterministic():
        for _ in range(2):
            results = list(loss_and_gradients(in_chunks, small, device, torch.bfloat16))
            with torch.no_grad():
                hidden, weight, targets = (t.to(device) for t in inputs(small))
                results += [in_chunks(hidden, weight, targets), token_scores(hidden, weight, targets, CHUNK)]
            runs.append(results)
    measured["tensors compared"] = len(runs[0])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
