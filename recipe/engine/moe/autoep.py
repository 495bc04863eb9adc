"""Our router and our limits inside DeepSpeed's AutoEP layers.

AutoEP brings expert parallelism (dispatch, grouped GEMM, combine) and a router without balancing, limits or
metrics, whose gate matmul runs in the model's precision. `recipe_layers` puts ours in their place while
`deepspeed.initialize` builds the layers, so the engine partitions, hooks and checkpoints them like any module.

Legend: T tokens of this rank's micro-batch, D hidden size, E routed experts, K experts per token, N rows kept.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from recipe.engine.deepspeed_private import (
    AutoEPMoELayer,
    TokenChoiceTopKRouter,
    count_tokens_per_expert,
    replaced_autoep_classes,
)
from recipe.engine.moe.experts import RecipeExperts
from recipe.engine.moe.plan import ExchangedPlan, LocalPlan, counts_of_parts
from recipe.engine.moe.routing_control import RoutingControl
from recipe.model.recompute import ROUTING_PLAN, kept_result
from recipe.model.routing.router import jitter, router_logits, score_shares, scores_and_choice, weights_of

# AutoEP's names of an expert's matrices, w2(silu(w1(x)) * w3(x)), and those of the interchange layout.
MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


class Fp32Gate(nn.Linear):
    """The gate's matmul in fp32 whatever the model's precision; a module of its own so that ZeRO-3 gathers its weight."""

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return router_logits(x_TD, self.weight)


class RecipeRouter(TokenChoiceTopKRouter):
    """Router of one AutoEP layer. In training it answers to the run's `RoutingControl`, in evaluation it only chooses."""

    control: RoutingControl | None = None
    number: int = 0  # of its layer among the MoE layers
    ep_group: torch.distributed.ProcessGroup | None = None

    def __init__(self, dim: int, num_experts: int, *args, gate_bias: bool, **kwargs):
        super().__init__(dim, num_experts, *args, gate_bias=gate_bias, **kwargs)
        assert not gate_bias, "the recipe's routers have no gate bias"
        self.gate = Fp32Gate(dim, num_experts, bias=False)

    def forward(self, x_TD: torch.Tensor, expert_bias: torch.Tensor | None = None):
        """AutoEP's contract: weights [T, K], experts [T, K], assignments per expert [E] int32.

        A dropped assignment has weight 0 and the expert number E, and is not counted; only
        `RecipeLayer` may be given those.
        """
        assert expert_bias is None, "AutoEP's own expert bias is off; ours is e_score_correction_bias"
        control = self.control if self.training else None
        if control is not None and control.settings.jitter > 0:
            x_TD = jitter(x_TD, control.settings.jitter, control.noise_key(self.number))
        logits_TE = self.gate(x_TD)
        scores_TE, choice_TE, chosen_TK = scores_and_choice(
            logits_TE,
            self.e_score_correction_bias,
            self.score_func,
            self.top_k,
            self.num_expert_groups or 1,
            self.num_limited_groups or 1,
        )
        if control is None:
            return self._weights(scores_TE, chosen_TK), chosen_TK, count_tokens_per_expert(chosen_TK, self.num_experts)
        # A recomputed layer goes by its first pass's choice, on which what it exchanged was based.
        experts_TK, kept_TK = kept_result(ROUTING_PLAN, lambda: control.limit(choice_TE, chosen_TK, self.ep_group))
        weights_TK = self._weights(scores_TE, experts_TK)
        if kept_TK is not None:
            weights_TK = weights_TK * kept_TK
        shares_TE = score_shares(scores_TE)
        control.observe_margins(self.number, choice_TE, chosen_TK)
        control.observe(self.number, logits_TE, shares_TE, chosen_TK, experts_TK, kept_TK)
        weights_TK = control.attach_losses(self.number, weights_TK, logits_TE, shares_TE, chosen_TK)
        if kept_TK is None:
            return weights_TK, experts_TK, count_tokens_per_expert(experts_TK, self.num_experts)
        sent_TK = torch.where(kept_TK, experts_TK, self.num_experts)
        return weights_TK, sent_TK, count_tokens_per_expert(sent_TK, self.num_experts + 1)[:-1]

    def _weights(self, scores_TE: torch.Tensor, experts_TK: torch.Tensor) -> torch.Tensor:
        return weights_of(scores_TE, experts_TK, norm_topk_prob=self.route_norm, routed_scaling_factor=self.route_scale)


class RecipeLayer(AutoEPMoELayer):
    """AutoEP's layer with our router and experts, rows that are moved once each way, and those that are dropped left out.

    Rows are on their way to the experts while the shared experts compute, and of several parts while the experts do.
    """

    exchange_parts: int = 1

    def _forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        folding = self.folding_group_handles
        if folding is not None and folding.spec.tp_size > 1:
            return super()._forward(hidden_BSD)  # AutoTP folded in divides the assignments itself
        x_TD = hidden_BSD.flatten(0, 1)
        weights_TK, experts_TK, counts_E = self.router(x_TD, None)
        plan: LocalPlan | ExchangedPlan = kept_result(ROUTING_PLAN, lambda: self._plan(experts_TK, counts_E))
        parts = zip(_divided(x_TD, self.exchange_parts), _divided(weights_TK, self.exchange_parts), strict=True)
        journeys: list[Any] = [*plan.journeys()]
        departed = [journey.depart(*part) for journey, part in zip(journeys, parts, strict=True)]
        shared_BSD = self.shared_experts(hidden_BSD) if self.shared_experts is not None else None
        returning = self.experts(departed, journeys)
        sums = [journey.home(rows) for journey, rows in zip(journeys, returning, strict=True)]
        out_BSD = (sums[0] if len(sums) == 1 else torch.cat(sums)).view_as(hidden_BSD)
        return out_BSD if shared_BSD is None else out_BSD + shared_BSD

    def _plan(self, experts_TK: torch.Tensor, counts_E: torch.Tensor) -> LocalPlan | ExchangedPlan:
        if self.ep_size == 1:
            return LocalPlan(experts_TK, counts_E)
        parts = _divided(experts_TK, self.exchange_parts)
        counts = [counts_E] if len(parts) == 1 else counts_of_parts(parts, self.num_experts)
        return ExchangedPlan(parts, counts, self.ep_group, self.ep_size, read_late=self.async_split_plan)


def _divided(rows: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """Rows in parts as even as can be, whose gradients are joined; those of slices are as large as all rows, and added up."""
    if parts == 1:
        return [rows]
    each, more = divmod(rows.shape[0], parts)
    return list(rows.split([each + (part < more) for part in range(parts)]))


def recipe_layers() -> AbstractContextManager[None]:
    """While active, AutoEP builds its layers as `RecipeLayer` with `RecipeRouter` and `RecipeExperts`."""
    return replaced_autoep_classes(RecipeRouter, RecipeLayer, RecipeExperts)


def moe_layers(module: nn.Module) -> list[tuple[str, AutoEPMoELayer]]:
    """The expert-parallel layers of a model in order, with their names."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, AutoEPMoELayer)]


def divide_exchanges(module: nn.Module, parts: int) -> None:
    """Have every layer divide its tokens into so many parts; 1 where no rank exchanges any."""
    for _, layer in moe_layers(module):
        assert parts == 1 or layer.ep_size > 1, "without expert parallelism there is no exchange to divide"
        layer.exchange_parts = parts


def connect(module: nn.Module, control: RoutingControl) -> None:
    """Give every layer's router the run's control and its number."""
    for number, (name, layer) in enumerate(moe_layers(module)):
        assert isinstance(layer.router, RecipeRouter), f"AutoEP built {name} with its own router"
        assert isinstance(layer.experts, RecipeExperts), f"AutoEP built {name} with its own experts"
        layer.router.control, layer.router.number, layer.router.ep_group = control, number, layer.ep_group


def interchange_name(name: str) -> str:
    """The name in the interchange layout of what is not an expert's: AutoEP puts the router's weights a level deeper."""
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.e_score", ".mlp.gate.e_score")
