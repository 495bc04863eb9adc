"""Our router and our limits inside DeepSpeed's AutoEP layers.

AutoEP brings expert parallelism (dispatch, grouped GEMM, combine) and a router without balancing, limits or
metrics, whose gate matmul runs in the model's precision. `recipe_layers` puts ours in their place while
`deepspeed.initialize` builds the layers, so the engine partitions, hooks and checkpoints them like any module.

Legend: T tokens of this rank's micro-batch, D hidden size, E routed experts, K experts per token, N rows kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import nn

from recipe.engine.deepspeed_private import (
    AutoEPMoELayer,
    SplitPlan,
    TokenChoiceTopKRouter,
    all_to_all,
    compute_split_plan,
    count_tokens_per_expert,
    permute_by_local_expert,
    replaced_autoep_classes,
    unpermute_by_local_expert,
)
from recipe.engine.routing_control import RoutingControl
from recipe.model.routing.dispatch import combine, dispatch, grouped_positions, sorted_positions
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
        experts_TK, kept_TK = control.limit(choice_TE, chosen_TK, self.ep_group)
        weights_TK = self._weights(scores_TE, experts_TK)
        if kept_TK is not None:
            weights_TK = weights_TK * kept_TK
        shares_TE = score_shares(scores_TE)
        control.observe(self.number, logits_TE, shares_TE, chosen_TK, experts_TK, kept_TK)
        weights_TK = control.attach_losses(self.number, weights_TK, logits_TE, shares_TE, chosen_TK)
        if kept_TK is None:
            return weights_TK, experts_TK, count_tokens_per_expert(experts_TK, self.num_experts)
        sent_TK = torch.where(kept_TK, experts_TK, self.num_experts)
        return weights_TK, sent_TK, count_tokens_per_expert(sent_TK, self.num_experts + 1)[:-1]

    def _weights(self, scores_TE: torch.Tensor, experts_TK: torch.Tensor) -> torch.Tensor:
        return weights_of(scores_TE, experts_TK, norm_topk_prob=self.route_norm, routed_scaling_factor=self.route_scale)


class RecipeLayer(AutoEPMoELayer):
    """AutoEP's layer with our router, rows that are moved once each way, and those that are dropped left out."""

    def _forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        folding = self.folding_group_handles
        if folding is not None and folding.spec.tp_size > 1:
            return super()._forward(hidden_BSD)  # AutoTP folded in divides the assignments itself
        x_TD = hidden_BSD.flatten(0, 1)
        routed = self.router(x_TD, None)
        out_TD = self._here(x_TD, *routed) if self.ep_size == 1 else self._everywhere(x_TD, *routed)
        return self._finalize_output(out_TD.view_as(hidden_BSD), x_TD, hidden_BSD, hidden_BSD.shape[-1])

    def _here(self, x_TD: torch.Tensor, weights_TK, experts_TK, counts_E) -> torch.Tensor:
        """All experts are this rank's: rows go straight to where their grouped GEMM wants them."""
        position_A, assignment_N, sizes_E = grouped_positions(experts_TK, counts_E)
        rows_ND = self.experts(dispatch(x_TD, position_A, assignment_N), sizes_E)
        return combine(rows_ND, weights_TK, position_A, assignment_N)

    def _everywhere(self, x_TD: torch.Tensor, weights_TK, experts_TK, counts_E) -> torch.Tensor:
        """Experts are spread over the expert-parallel group, whose ranks exchange rows."""
        plan_of = self._planned(experts_TK, counts_E)
        # Without limits every assignment has a row, and their number is known without asking the GPU.
        limited = self.training and self.router.control is not None and self.router.control.limits
        num_rows = sum(plan_of().input_splits) if limited else experts_TK.numel()
        position_A, assignment_N = sorted_positions(experts_TK, num_rows)
        rows_ND = dispatch(x_TD, position_A, assignment_N)
        plan = plan_of()
        rows_ND = all_to_all(self.ep_group, rows_ND, plan.input_splits, plan.output_splits)
        by_expert, places, aligned, received = permute_by_local_expert(rows_ND, plan.local_counts_by_source)
        rows_ND = unpermute_by_local_expert(self.experts(by_expert, aligned), places, received)
        rows_ND = all_to_all(self.ep_group, rows_ND, plan.output_splits, plan.input_splits)
        return combine(rows_ND, weights_TK, position_A, assignment_N)

    def _planned(self, experts_TK: torch.Tensor, counts_E: torch.Tensor) -> Callable[[], SplitPlan]:
        """How many rows go where and come from where, once it is asked for; with `async_split_plan` on its way until then."""
        if self.async_split_plan:
            pending = self._start_async_split_plan(counts_E)
            return cache(lambda: self._wait_async_split_plan(pending))
        plan = compute_split_plan(
            experts_TK, self.num_experts, self.ep_size, self.num_local_experts, self.ep_group, counts_E
        )
        return lambda: plan


def recipe_layers() -> AbstractContextManager[None]:
    """While active, AutoEP builds its layers as `RecipeLayer` with `RecipeRouter`."""
    return replaced_autoep_classes(RecipeRouter, RecipeLayer)


def moe_layers(module: nn.Module) -> list[tuple[str, AutoEPMoELayer]]:
    """The expert-parallel layers of a model in order, with their names."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, AutoEPMoELayer)]


def connect(module: nn.Module, control: RoutingControl) -> None:
    """Give every layer's router the run's control and its number."""
    for number, (name, layer) in enumerate(moe_layers(module)):
        assert isinstance(layer.router, RecipeRouter), f"AutoEP built {name} with its own router"
        layer.router.control, layer.router.number, layer.router.ep_group = control, number, layer.ep_group


def interchange_name(name: str) -> str:
    """The name in the interchange layout of what is not an expert's: AutoEP puts the router's weights a level deeper."""
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.e_score", ".mlp.gate.e_score")
