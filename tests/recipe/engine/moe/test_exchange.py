"""A layer whose rows travel against one whose rows stay: results and gradients, with what nobody wrote filled with NaN.

The rank exchanges with itself alone, and what it receives is there when it has waited.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import parse_autoep_config
from torch.utils.checkpoint import checkpoint

from recipe.engine.deepspeed_private import count_tokens_per_expert
from recipe.engine.moe.autoep import RecipeLayer, moe_layers, recipe_layers
from recipe.engine.moe.exchange import Exchange
from recipe.engine.moe.plan import Counts, ExchangedPlan, counts_of_parts
from recipe.model.recompute import contexts
from tests.conftest import ds_config
from tests.recipe.model.test_modeling import initialized, small_config

TOKENS = 23


class Work:
    def __init__(self, received: torch.Tensor, sent: torch.Tensor):
        self._received, self._sent = received, sent

    def wait(self) -> None:
        self._received.copy_(self._sent)


@pytest.fixture(autouse=True)
def exchanges(monkeypatch) -> None:
    def all_to_all(received, sent, here=None, there=None, group=None, async_op=False) -> Work | None:
        assert (here, there) == ((None, None) if here is None else ([len(received)], [len(sent)]))
        work = Work(received, sent)
        return work if async_op else work.wait()

    monkeypatch.setattr(deepspeed.comm, "all_to_all_single", all_to_all)


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    filled, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory, True,
    )  # fmt: skip
    assert torch.empty(8).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


def layer_of(*, drops: bool) -> RecipeLayer:
    """The first MoE layer of a small model; every fifth assignment is dropped if asked."""
    config = parse_autoep_config(ds_config(1, micro_batch=1, accumulation=1, autoep_size=1)["expert_parallel"])
    with recipe_layers():
        model: Any = initialized(small_config())
        layers = AutoEP(model, config)
        layers.replace_moe_layers(layers.ep_parser(), ep_size=1, ep_rank=0)
    layer: Any = moe_layers(model)[0][1]
    route = layer.router.forward

    def drop(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights_TK, experts_TK, _ = route(*args)
        kept_TK = (torch.arange(experts_TK.numel()) % 5 > 0).view_as(experts_TK)
        experts_TK = torch.where(kept_TK, experts_TK, layer.num_experts)
        return weights_TK * kept_TK, experts_TK, count_tokens_per_expert(experts_TK, layer.num_experts + 1)[:-1]

    if drops:
        layer.router.forward = drop
    return layer


def results(layer: RecipeLayer, kept: tuple[str, ...] | None) -> dict[str, torch.Tensor]:
    """The output, and gradients of the input and of all parameters; recomputed, and keeping these names, unless None."""
    layer.zero_grad()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TOKENS, layer.hidden_size, generator=generator, requires_grad=True)
    out = layer(x) if kept is None else checkpoint(layer, x, use_reentrant=False, context_fn=contexts(kept))
    out.backward(torch.randn(out.shape, generator=generator))
    gradients = {name: weight.grad for name, weight in layer.named_parameters()}
    return {"output": out.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("kept", [None, (), ("rows",), ("rows", "gate_up", "shared_gate_up")], ids=str)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("drops", [False, True], ids=["dropless", "drops"])
def test_rows_that_travel_in_parts_give_what_rows_that_stay_give(drops, parts, kept, monkeypatch):
    layer = layer_of(drops=drops)
    expected = results(layer, None)

    def exchanged(layer: RecipeLayer, experts_TK: torch.Tensor, counts_E: torch.Tensor) -> ExchangedPlan:
        experts = list(experts_TK.tensor_split(parts))
        return ExchangedPlan(experts, counts_of_parts(experts, layer.num_experts), None, 1, read_late=False)

    monkeypatch.setattr(RecipeLayer, "_plan", exchanged)
    layer.exchange_parts = parts
    for name, found in results(layer, kept).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_go_back_by_the_same_ways(monkeypatch):
    ways: list[tuple[int, int, list[int], list[int]]] = []

    def all_to_all(received, sent, here, there, group=None, async_op=False) -> Work:
        ways.append((len(received), len(sent), here, there))
        return Work(received, torch.ones_like(received))

    monkeypatch.setattr(deepspeed.comm, "all_to_all_single", all_to_all)
    exchange, rows_ND = (
        Exchange(None, [1, 3], [2, 0]),
        torch.zeros(6, 2, requires_grad=True),
    )  # two of which are not sent
    arrived_ND = exchange.wait(exchange.start(rows_ND))
    assert arrived_ND.tolist() == [[1, 1]] * 2
    (grad_ND,) = torch.autograd.grad(arrived_ND.sum(), rows_ND)
    assert (grad_ND[:4] == 1).all()
    assert ways == [(2, 4, [2, 0], [1, 3]), (4, 2, [1, 3], [2, 0])]


def test_the_host_reads_counts_when_they_have_come():
    counts: Any = Counts(torch.tensor([[1, 2]], dtype=torch.int32), None, 1, read_late=True)
    counts._splits = torch.zeros_like(counts._splits)  # a copy from a GPU that is under way
    counts._copied = SimpleNamespace(synchronize=lambda: counts._splits.fill_(3))
    assert counts.read() == [[[3], [3]]]


def test_a_second_pass_goes_by_the_limits_of_the_first():
    """Though what is free, or what ranks of a group tell each other, may have changed, and is not asked again."""
    layer: Any = layer_of(drops=False)
    kept_TK = (torch.arange(TOKENS * layer.top_k) % 5 > 0).view(TOKENS, layer.top_k)
    answers: list[Any] = []

    def limit(_: Any, chosen_TK: torch.Tensor, __: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return chosen_TK, answers.pop()

    layer.router.control = SimpleNamespace(
        settings=SimpleNamespace(jitter=0),
        limit=limit,
        observe_margins=lambda *_: None,
        observe=lambda *_: None,
        attach_losses=lambda _, weights, *__: weights,
    )
    answers[:] = [kept_TK]
    expected = results(layer, None)
    answers[:] = [~kept_TK, kept_TK]
    for name, found in results(layer, ()).items():
        assert torch.equal(found, expected[name]), name
    assert len(answers) == 1
