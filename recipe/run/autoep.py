"""Our router inside DeepSpeed's AutoEP layers.

AutoEP brings expert parallelism (dispatch, grouped GEMM, combine) and a router without balancing losses
whose gate matmul runs in the model's precision. `recipe_router` puts ours in its place while
`deepspeed.initialize` builds the layers, so the engine partitions, hooks and checkpoints it like any module.

Legend: T tokens of this rank's micro-batch, D hidden size, E routed experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.ep_router import TokenChoiceTopKRouter
from torch import nn

from recipe.base.settings import Routing
from recipe.model.routing import (
    AttachLoss,
    choose_experts,
    load_balancing_loss,
    router_logits,
    router_scores,
    router_z_loss,
)


class Fp32Gate(nn.Linear):
    """The gate's matmul in fp32 whatever the model's precision; a module of its own so that ZeRO-3 gathers its weight."""

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return router_logits(x_TD, self.weight)


class RecipeRouter(TokenChoiceTopKRouter):
    """Router of one AutoEP layer: fp32 scores, top-k, and per-layer balancing losses in the graph.

    The losses are taken layer by layer, the load-balancing one sequence by sequence, so that they do not
    depend on how the global batch is split over ranks and accumulation steps. They reach the router
    through `AttachLoss`; the loss that the loop reports stays the language-model loss.
    """

    # Set once for all layers by `configure_routing`, before the first training step.
    routing: Routing | None = None
    seq_length: int = 0
    loss_scale: float = 1.0

    def __init__(self, dim: int, num_experts: int, *args, gate_bias: bool, **kwargs):
        super().__init__(dim, num_experts, *args, gate_bias=gate_bias, **kwargs)
        assert not gate_bias, "the recipe's routers have no gate bias"
        self.gate = Fp32Gate(dim, num_experts, bias=False)
        # Sums of aux loss and z-loss, and how many were added, since the metrics last read and zeroed them.
        self.loss_totals = torch.zeros(3)

    def forward(self, x_TD: torch.Tensor, expert_bias: torch.Tensor | None = None):
        """AutoEP's contract: weights [T, K], experts [T, K], assignments per expert [E] int32."""
        assert expert_bias is None, "AutoEP's own expert bias is off; ours is e_score_correction_bias"
        logits_TE = self.gate(x_TD)
        scores_TE = router_scores(logits_TE, self.score_func)
        weights_TK, experts_TK = choose_experts(
            scores_TE,
            self.e_score_correction_bias,
            top_k=self.top_k,
            n_group=self.num_expert_groups or 1,
            topk_group=self.num_limited_groups or 1,
            norm_topk_prob=self.route_norm,
            routed_scaling_factor=self.route_scale,
        )
        counts_E = torch.bincount(experts_TK.flatten(), minlength=self.num_experts).to(torch.int32)
        if self.training and self.routing is not None:
            weights_TK = self._attach_losses(weights_TK, logits_TE, scores_TE, experts_TK)
        return weights_TK, experts_TK, counts_E

    def _attach_losses(self, weights_TK, logits_TE, scores_TE, experts_TK) -> torch.Tensor:
        aux_loss = load_balancing_loss(scores_TE, experts_TK, self.seq_length)
        z_loss = router_z_loss(logits_TE)
        losses = torch.stack((aux_loss, z_loss, torch.ones_like(z_loss))).detach()
        self.loss_totals = self.loss_totals.to(losses.device) + losses
        assert self.routing is not None
        total = self.routing.aux_loss_coef * aux_loss + self.routing.z_loss_coef * z_loss
        return AttachLoss.apply(weights_TK, total, self.loss_scale)


@contextmanager
def recipe_router() -> Iterator[None]:
    """While active, AutoEP builds its layers with `RecipeRouter`."""
    original = auto_ep_layer.TokenChoiceTopKRouter
    auto_ep_layer.TokenChoiceTopKRouter = RecipeRouter
    try:
        yield
    finally:
        auto_ep_layer.TokenChoiceTopKRouter = original


def moe_layers(module: nn.Module) -> list[tuple[str, AutoEPMoELayer]]:
    """The expert-parallel layers of a model in order, with their names."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, AutoEPMoELayer)]


def configure_routing(
    module: nn.Module, routing: Routing, *, seq_length: int, gradient_accumulation_steps: int
) -> None:
    """Switch the balancing losses on in every layer of a model whose layers AutoEP has built.

    The engine divides the loss by the accumulation steps before the backward pass; so must what the
    layers attach.
    """
    for name, layer in moe_layers(module):
        assert isinstance(layer.router, RecipeRouter), f"AutoEP built {name} with its own router"
        layer.router.routing = routing
        layer.router.seq_length = seq_length
        layer.router.loss_scale = 1.0 / gradient_accumulation_steps
