"""In which order a layer exchanges and computes, forward and backward, and what its second pass leaves out.

One rank of two whose other rank has the same tokens: what comes from it is what this rank sends to itself.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import parse_autoep_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from recipe.engine.moe import experts as experts_module
from recipe.engine.moe.autoep import RecipeLayer, divide_exchanges, moe_layers, recipe_layers
from recipe.engine.moe.experts import RecipeExperts
from recipe.model import RecipeMoeForCausalLM
from recipe.model.recompute import ROUTING_PLAN, contexts
from tests.conftest import ds_config
from tests.recipe.model.test_modeling import small_config

TOKENS, TOP_K = 24, 2


class Work:
    def __init__(self, events: list[str], name: str):
        self._events, self._name = events, name

    def wait(self) -> None:
        self._events.append(f"wait {self._name}")


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """Starts and waits of exchanges, by columns and rows sent, and when experts and shared experts compute."""
    happened: list[str] = []

    def all_to_all(received, sent, here=None, there=None, group=None, async_op=False) -> Work | None:
        if not async_op:
            happened.append("counts")
            received.copy_(torch.cat([sent[:1]] * 2))
            return None
        name = "weights" if sent.shape[1] == 1 else "rows"
        happened.append(f"start {name}")
        received.zero_()
        return Work(happened, name)

    computed, backward = RecipeExperts.computed, experts_module._Down.backward

    def experts(*args: Any) -> torch.Tensor:
        happened.append("experts")
        return computed(*args)

    def experts_backward(ctx: Any, grad: torch.Tensor) -> Any:
        happened.append("experts back")
        return backward(ctx, grad)

    monkeypatch.setattr(deepspeed.comm, "all_to_all_single", all_to_all)
    monkeypatch.setattr(RecipeExperts, "computed", experts)
    monkeypatch.setattr(experts_module._Down, "backward", staticmethod(experts_backward))
    return happened


@pytest.fixture
def layer(events) -> RecipeLayer:
    config = parse_autoep_config(ds_config(2, micro_batch=1, accumulation=1, autoep_size=2)["expert_parallel"])
    with recipe_layers():
        model = RecipeMoeForCausalLM(small_config())
        layers = AutoEP(model, config)
        layers.replace_moe_layers(layers.ep_parser(), ep_size=2, ep_rank=0)
    one = moe_layers(model)[0][1]
    one.shared_experts.register_forward_pre_hook(lambda *_: events.append("shared"))
    one.shared_experts.register_full_backward_pre_hook(lambda *_: events.append("shared back"))
    return one


def passes(layer: RecipeLayer, parts: int, kept: set[str] | None) -> None:
    """Forward and backward; recomputed, and keeping results of these names, unless None."""
    divide_exchanges(layer, parts)
    x = torch.randn(1, TOKENS, layer.hidden_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    recomputed = {} if kept is None else {"context_fn": contexts(frozenset({ROUTING_PLAN, *kept}))}
    out = layer(x) if kept is None else checkpoint(layer, x, use_reentrant=False, **recomputed)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))


SENT = ["start rows", "start weights"] * 2
FORWARD = [
    "counts", *SENT, "shared",
    "wait rows", "wait weights", "experts", "start rows",
    "wait rows", "wait weights", "experts", "start rows",
    "wait rows", "wait rows",
]  # fmt: skip
# Of the second part first: its gradients are on their way while the other's start, and so on.
BACK = ["start rows", "start rows"]
BACKWARD = [
    "wait rows", "experts back", "start weights", "start rows",
    "wait rows", "experts back", "start weights", "start rows",
    "shared back", "wait weights", "wait rows", "wait weights", "wait rows",
]  # fmt: skip


def test_exchanges_of_two_parts_run_beside_experts_and_shared_experts_in_both_passes(layer, events):
    passes(layer, 2, None)
    assert events == [*FORWARD, *BACK, *BACKWARD]


@pytest.mark.parametrize(("kept", "sent"), [(set(), True), ({"rows"}, False)])
def test_a_recomputed_layer_exchanges_again_what_it_did_not_keep_and_nothing_back(kept, sent, layer, events):
    passes(layer, 2, kept)
    arrivals = ["wait rows", "wait weights"] if sent else []
    second = [*(SENT if sent else []), "shared", *arrivals, "experts", *arrivals, "experts"]
    # The second pass begins when the experts' gradients want what they had saved.
    assert events == [*FORWARD, *BACK, *BACKWARD[:2], *second, *BACKWARD[2:]]


class GroupedGemms(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kept", "again"), [(None, 0), (set(), 2), ({"rows"}, 2), ({"gate_up"}, 0), ({"rows", "gate_up"}, 0)]
)
@pytest.mark.parametrize("parts", [1, 3])
def test_grouped_gemms_of_a_layer(parts, kept, again, layer):
    """Three forward, and two for each backward; again gate and up, if at all, and never the down projection."""
    with GroupedGemms() as operators:
        passes(layer, parts, kept)
    assert operators.calls[torch.ops.aten._grouped_mm.default] == parts * (9 + again)
    # A part's gradient is a part of the tokens', not as large as all of them.
    assert operators.calls[torch.ops.aten.slice_backward.default] == 0
