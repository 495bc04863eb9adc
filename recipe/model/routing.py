"""Router arithmetic: from hidden states to chosen experts, and the losses that keep them balanced.

Legend: T tokens, D hidden size, E routed experts, K experts per token.
Everything here is fp32, whatever the model's precision: routing compares scores that differ in the
third digit, and bf16 has two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def router_scores(logits_TE: torch.Tensor, scoring_func: str) -> torch.Tensor:
    """Scores in (0, 1) of every expert for every token."""
    if scoring_func == "sigmoid":
        return logits_TE.sigmoid()
    if scoring_func == "softmax":
        return logits_TE.softmax(dim=-1)
    raise ValueError(f"unknown scoring_func '{scoring_func}'")


def choose_experts(
    scores_TE: torch.Tensor,
    bias_E: torch.Tensor | None,
    *,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k of biased scores, weighted by the unbiased ones (DeepSeek-V3, arXiv 2412.19437 eq. 12-16).

    With `n_group > 1`, only the `topk_group` groups with the largest sum of their two best scores are eligible.

    Returns:
        weights_TK: float32, gradient flows to `scores_TE`.
        experts_TK: int64, unordered within a token.
    """
    choice_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if n_group > 1:
        grouped_TGe = choice_TE.unflatten(-1, (n_group, -1))
        group_scores_TG = grouped_TGe.topk(2, dim=-1).values.sum(dim=-1)
        chosen_groups = group_scores_TG.topk(topk_group, dim=-1, sorted=False).indices
        eligible_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool).scatter_(1, chosen_groups, True)
        choice_TE = grouped_TGe.masked_fill(~eligible_TG.unsqueeze(-1), float("-inf")).flatten(1)
    experts_TK = choice_TE.topk(top_k, dim=-1, sorted=False).indices
    weights_TK = scores_TE.gather(1, experts_TK)
    if norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    return weights_TK * routed_scaling_factor, experts_TK


def load_balancing_loss(scores_TE: torch.Tensor, experts_TK: torch.Tensor, seq_length: int) -> torch.Tensor:
    """Sequence-wise load-balancing loss of one layer, mean over sequences (DeepSeek-V3, arXiv 2412.19437 eq. 17-20).

    For each sequence of S = `seq_length` tokens, E * sum_e f_e * P_e: f_e is the fraction of its
    assignments that went to expert e (no gradient) and P_e the mean share of expert e in its tokens'
    scores. 1 when perfectly balanced, up to E / K when collapsed.
    """
    num_experts, top_k = scores_TE.shape[-1], experts_TK.shape[-1]
    share_BSE = (scores_TE / scores_TE.sum(dim=-1, keepdim=True)).unflatten(0, (-1, seq_length))
    experts_BA = experts_TK.unflatten(0, (-1, seq_length)).flatten(1)
    counts_BE = torch.zeros_like(share_BSE[:, 0]).scatter_add_(
        1, experts_BA, torch.ones_like(experts_BA, dtype=scores_TE.dtype)
    )
    fraction_BE = counts_BE / (seq_length * top_k)
    return num_experts * (fraction_BE * share_BSE.mean(dim=1)).sum(dim=-1).mean()


def router_z_loss(logits_TE: torch.Tensor) -> torch.Tensor:
    """Mean squared log-partition of the router logits (ST-MoE, arXiv 2202.08906 eq. 5)."""
    return torch.logsumexp(logits_TE, dim=-1).square().mean()


class AttachLoss(torch.autograd.Function):
    """Pass `carrier` through unchanged and give `loss` the gradient `scale` in the backward pass.

    So a loss computed inside a layer trains the router without being added to the reported loss, and
    without being carried out of the layer. (The technique of Megatron's MoEAuxLossAutoScaler.)
    """

    @staticmethod
    def forward(ctx, carrier: torch.Tensor, loss: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        ctx.save_for_backward(loss)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx, grad_carrier: torch.Tensor):
        (loss,) = ctx.saved_tensors
        return grad_carrier, torch.full_like(loss, ctx.scale), None


def router_logits(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
    """Gate matmul in fp32, from inputs of any precision."""
    with torch.autocast(device_type=x_TD.device.type, enabled=False):
        return F.linear(x_TD.float(), weight_ED.float())
