"""The loss in chunks against the plain one: value, gradients, and how much of the logits exists at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.model import RecipeMoeForCausalLM
from recipe.model.loss import summed_loss, token_scores
from tests.recipe.model.test_modeling import initialized, small_config

T, D, V = 37, 16, 101


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (T,), generator=generator)
    targets[[0, 5, 36]] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("chunk_tokens", [1, 5, 37, 1000])
def test_value_and_gradients_equal_the_plain_loss(chunk_tokens):
    hidden, weight, targets = inputs()
    loss = summed_loss(hidden, weight, targets, chunk_tokens)
    (3 * loss).backward()
    found = loss.detach(), hidden.grad, weight.grad
    hidden, weight, targets = inputs()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (3 * plain).backward()
    for ours, expected in zip(found, (plain.detach(), hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_bf16_gradients_are_as_near_to_fp32_as_the_plain_loss_is():
    hidden, weight, targets = inputs()
    F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
    exact = weight.grad
    errors = []
    for loss_of in (
        lambda h, w, t: summed_loss(h, w, t, 8),
        lambda h, w, t: F.cross_entropy((h @ w.T).float(), t, reduction="sum"),
    ):
        hidden, weight, targets = inputs(torch.bfloat16)
        loss_of(hidden, weight, targets).backward()
        assert weight.grad.dtype == torch.bfloat16
        errors.append(((weight.grad.float() - exact).norm() / exact.norm()).item())
    assert errors[0] < 1.2 * errors[1] < 0.03


def test_the_bf16_weights_gradient_is_added_up_in_fp32():
    """Equal rows, a chunk each: a bf16 sum stands still once a chunk's gradient is under half of its last bit."""
    tokens = 512
    hidden, weight, targets = inputs(torch.bfloat16)
    hidden, targets = hidden.detach()[1:2].expand(tokens, D).contiguous(), targets[1:2].expand(tokens)
    gradients = []
    for chunk_tokens in (1, tokens):
        weight.grad = None
        summed_loss(hidden, weight, targets, chunk_tokens).backward()
        gradients.append(weight.grad.float())
    in_chunks, at_once = gradients
    assert (in_chunks - at_once).norm() < 2e-3 * at_once.norm()


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch):
    sizes = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: sizes.append(x.shape[0]) or linear(x, w))
    hidden, weight, targets = inputs()
    summed_loss(hidden, weight, targets, 8).backward()
    assert sizes == [8, 8, 8, 8, 5]


class Seen(TorchDispatchMode):
    """What is computed inside: its names, and the elements of each result."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.operations.append((func.overloadpacket.__name__, result.numel()))
        return result

    def count(self, *names: str) -> int:
        return sum(name in names for name, _ in self.operations)


MATMULS = ("mm", "addmm", "bmm", "linear", "matmul")


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_are_computed(without):
    hidden, weight, targets = inputs()
    with without(), Seen() as seen:
        loss = summed_loss(hidden, weight, targets, 8)
    assert not loss.requires_grad
    assert seen.count(*MATMULS) == 5  # one a chunk: the logits
    fresh = [size for name, size in seen.operations if name in ("empty_like", "zeros_like", "empty", "zeros")]
    assert max(fresh, default=0) < hidden.numel()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(loss, plain.detach())


@pytest.mark.parametrize(("of", "matmuls"), [("hidden", 2), ("weight", 2), ("both", 3)])
def test_only_the_gradients_that_are_asked_for_are_computed(of, matmuls):
    hidden, weight, targets = inputs()
    hidden.requires_grad_(of != "weight")
    weight.requires_grad_(of != "hidden")
    with Seen() as seen:
        summed_loss(hidden, weight, targets, 8).backward()
    assert seen.count(*MATMULS) == 5 * matmuls
    assert (hidden.grad is None, weight.grad is None) == (of == "weight", of == "hidden")


def test_each_tokens_scores_are_those_of_whole_logits():
    hidden, weight, targets = inputs()
    first = (hidden @ weight.T).argmax(dim=1)
    targets[7:12] = first[7:12]
    with Seen() as seen:
        scores_T2 = token_scores(hidden, weight, targets, 8)
    assert max(size for _, size in seen.operations) < T * V
    counted = targets != -100
    plain = (hidden @ weight.T).log_softmax(dim=1)[torch.arange(T), targets.clamp(min=0)]
    torch.testing.assert_close(scores_T2[counted, 0], plain[counted].detach())
    assert torch.equal(scores_T2[:, 1].bool(), first == targets)
    assert scores_T2[~counted].abs().max() == 0


def test_the_models_scores_are_those_of_its_logits():
    model: RecipeMoeForCausalLM = initialized(small_config())
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    scores_BS2 = model(tokens[:, :-1], targets=tokens[:, 1:], loss_chunk_tokens=7, per_token=True).loss
    logits = model(tokens[:, :-1]).logits
    nats = logits.log_softmax(dim=-1).gather(2, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(scores_BS2[..., 0], nats.detach())
    assert torch.equal(scores_BS2[..., 1].bool(), logits.argmax(dim=-1) == tokens[:, 1:])


def test_the_models_loss_of_targets_is_that_of_its_logits():
    model: RecipeMoeForCausalLM = initialized(small_config())
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :4] = -100
    found = model(tokens[:, :-1], targets=targets, loss_chunk_tokens=7)
    assert found.logits is None
    plain = F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(found.loss, plain)
