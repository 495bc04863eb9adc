"""The language-model head with its loss, and one MoE layer, each beside what a user would take instead.

Legend: T tokens of a micro-batch, D hidden size, V vocabulary, E experts of a rank, K experts per token.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.kernel_cases.matmuls import BUSIEST, prefers_triton
from benchmarks.kernel_cases.measuring import (
    BOTH,
    CUDA,
    DEVICE,
    DTYPE,
    Case,
    NotPossible,
    Sizes,
    random,
    timed,
)
from recipe.base.settings import Compute
from recipe.model.fusion import fused
from recipe.model.loss import next_token_loss, summed_loss

OURS, COMPILED, AUTOEP, GLM4 = "ours", "ours, compiled", "DeepSpeed's AutoEP", "transformers Glm4MoeMoE, grouped_mm"
UNIFORM, SKEWED = "uniform", "skewed"
ONE_RANK = "as one rank of EP {ep}: as many rows and local experts, without the exchange, its waits and the router of all experts"


class OneRank:
    """A process group of this process alone, from the first case that needs one to the end of the block; the layer in it."""

    def __init__(self) -> None:
        self.layers: dict[tuple[Any, ...], nn.Module] = {}
        self._stack = ExitStack()
        self._started = False

    def __enter__(self) -> OneRank:
        return self

    def start(self) -> None:
        if self._started:
            return
        from benchmarks.moe_layer import place_of_rank
        from launch.cluster.hosts import free_port
        from recipe.engine.session import session

        place = place_of_rank(0, 1, free_port())
        before = {name: os.environ[name] for name in place if name in os.environ}
        os.environ.update(place)
        self._stack.callback(os.environ.update, before)
        for name in place.keys() - before.keys():
            self._stack.callback(os.environ.pop, name, None)
        self._stack.enter_context(session())
        self._started = True

    def abandon(self) -> None:
        """Leave it as it is: a GPU that takes no more work cannot end it in order."""
        self._stack.pop_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.layers.clear()
        self._stack.close()


# The head.


def loss_flops(tokens: int, hidden: int, vocab: int) -> int:
    """Forward and the gradients of hidden states and weight; neither head computes its logits twice."""
    return 3 * 2 * tokens * hidden * vocab


def loss_cases(sizes: Sizes) -> Iterator[Case]:
    shape, tokens = sizes.shape, sizes.tokens
    chunk = min(tokens // 2, Compute().loss_chunk_tokens)
    for name in ("ours, not compiled", "plain", "ours"):
        yield Case(
            "loss_head", name,
            {"tokens": tokens, "hidden": shape.hidden_size, "vocab": shape.vocab_size,
             "chunk_tokens": None if name == "plain" else chunk},
            partial(_loss, sizes, name, chunk), BOTH,
            flops=loss_flops(tokens, shape.hidden_size, shape.vocab_size),
            note="F.linear and F.cross_entropy of fp32 logits, as transformers do" if name == "plain" else None,
            cost_s=8.0 if name == "ours" else 2.0,
        )  # fmt: skip


def _loss(sizes: Sizes, name: str, chunk: int) -> dict[str, Any]:
    shape, tokens = sizes.shape, sizes.tokens
    hidden_TD = random(tokens, shape.hidden_size, requires_grad=True)
    weight_VD = random(shape.vocab_size, shape.hidden_size, scale=shape.initializer_range, requires_grad=True)
    targets_T = torch.randint(shape.vocab_size, (tokens,), device=DEVICE)

    def act() -> tuple[torch.Tensor, ...]:
        if name == "plain":
            loss = next_token_loss(F.linear(hidden_TD, weight_VD).unsqueeze(0), targets_T)
        else:
            loss = summed_loss(hidden_TD, weight_VD, targets_T, chunk) / tokens
        return torch.autograd.grad(loss, (hidden_TD, weight_VD))

    with fused(name == "ours"):
        return timed(act)


# The MoE layer.


def moe_flops(shape: dict[str, int]) -> int:
    """Forward and both gradients of routed experts, one shared expert, and the router's gate."""
    per_row = 3 * 2 * shape["hidden"] * shape["width"]
    rows = shape["tokens"] * (shape["top_k"] + 1)
    gate = 2 * shape["tokens"] * shape["hidden"] * shape["experts"]
    return 3 * (rows * per_row + gate)


def layer_shape(sizes: Sizes, ep: int) -> dict[str, int]:
    """As `benchmarks/moe_layer.py` takes it."""
    shape = sizes.shape
    return {"tokens": sizes.tokens, "hidden": shape.hidden_size, "width": shape.moe_intermediate_size,
            "experts": shape.n_routed_experts // ep, "top_k": shape.num_experts_per_tok}  # fmt: skip


def moe_cases(sizes: Sizes, group: OneRank) -> Iterator[Case]:
    """All contenders at EP 1 and as one rank of expert parallelism; ours compiled last, which compiles ten functions."""
    for ep in (1, sizes.ep):
        for name in (OURS, AUTOEP, GLM4, COMPILED):
            for routing in (UNIFORM, SKEWED):
                yield moe_case(sizes, group, ep, name, routing)


def moe_case(sizes: Sizes, group: OneRank, ep: int, name: str, routing: str) -> Case:
    shape = layer_shape(sizes, ep)
    # Triton's configurations for the down projection's gradients, where AutoEP takes its kernel.
    tuned = name in (OURS, AUTOEP) and prefers_triton()
    return Case(
        "moe_layer", name, {"ep": ep, **shape, "routing": routing},
        lambda: measure_layer(group, name, shape, routing), BOTH,
        flops=moe_flops(shape), note=ONE_RANK.format(ep=ep) if ep > 1 else None,
        cost_s=(25.0 if name == COMPILED and routing == UNIFORM else 2.0) + (8.0 if tuned else 0.0),
        late=0 if name != COMPILED else 2 if ep == 1 else 4,
    )  # fmt: skip


def built_layer(group: OneRank, name: str, shape: dict[str, int]) -> nn.Module:
    """The layer that was built last, or a new one in its place: an engine of the flagship's layer has 10 GB of moments."""
    from benchmarks.moe_layer import autoep_layer, glm4_layer

    key = (OURS if name == COMPILED else name, *shape.items())
    if key not in group.layers:
        group.layers.clear()
        gc.collect()  # an engine and its hooks refer to each other
        if CUDA:
            torch.cuda.empty_cache()
        if name == GLM4:
            group.layers[key] = glm4_layer(shape, DEVICE, DTYPE)
        else:
            group.layers[key] = autoep_layer(shape, None if name == AUTOEP else {})[0]
    return group.layers[key]


def _loads(logits_TE: torch.Tensor, bias_E: torch.Tensor, top_k: int, experts: int) -> torch.Tensor:
    chosen_TK = (logits_TE.sigmoid() + bias_E).topk(top_k, dim=-1).indices
    return chosen_TK.flatten().bincount(minlength=experts)


@torch.no_grad()
def set_routing(layer: nn.Module, x_TD: torch.Tensor, routing: str, top_k: int) -> float:
    """Set the router's bias so that the busiest expert has its rows; returns its rows over the mean.

    The bias rises from expert to expert; how much is found by halving. Uniform routing has none.
    """
    router: Any = layer.router if hasattr(layer, "router") else layer.gate
    weight_ED = router.gate.weight if hasattr(router, "gate") else router.weight
    bias_E: torch.Tensor = router.e_score_correction_bias
    experts = bias_E.numel()
    wanted = min(BUSIEST, 0.99 * experts / top_k)  # no expert has more rows than there are tokens
    logits_TE, ramp_E = x_TD.float() @ weight_ED.float().T, torch.linspace(0, 1, experts, device=x_TD.device)
    mean = x_TD.shape[0] * top_k / experts
    low, high = 0.0, 2.0
    for _ in range(12 if routing == SKEWED else 0):
        middle = (low + high) / 2
        busiest = _loads(logits_TE, middle * ramp_E, top_k, experts).max().item() / mean
        low, high = (middle, high) if busiest < wanted else (low, middle)
    bias_E.copy_(high * ramp_E if routing == SKEWED else torch.zeros_like(ramp_E))
    return _loads(logits_TE, bias_E, top_k, experts).max().item() / mean


def measure_layer(group: OneRank, name: str, shape: dict[str, int], routing: str) -> dict[str, Any]:
    if name == COMPILED and not CUDA:
        raise NotPossible("a CPU compiles the layer's ten functions for longer than all other kernels take together")
    if name != GLM4:
        group.start()
    layer = built_layer(group, name, shape)
    generator = torch.Generator(device=DEVICE).manual_seed(0)  # the same tokens for all contenders
    x = torch.randn(1, shape["tokens"], shape["hidden"], device=DEVICE, generator=generator).to(DTYPE).requires_grad_()
    busiest = set_routing(layer, x.detach()[0], routing, shape["top_k"])
    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    grad = torch.randn_like(x)
    # Not `backward`: an engine's hooks would add gradients to its fp32 sums, which are no part of the layer.
    with fused(name == COMPILED):
        found = timed(lambda: torch.autograd.grad(layer(x), inputs, grad))
    return {**found, "busiest_over_mean": busiest}
