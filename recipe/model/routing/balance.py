"""What keeps experts equally loaded and logits small: losses of one layer, and the update of the expert bias.

Legend: T tokens, S tokens of a sequence, B = T / S sequences, E routed experts, K experts per token.
`valid_T` marks the tokens that count, as 1.0; padding is 0.0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from recipe.model.fusion import fusible


@fusible()
def load_balancing_loss(
    shares_TE: torch.Tensor, experts_TK: torch.Tensor, valid_T: torch.Tensor, group_tokens: int
) -> torch.Tensor:
    """Load-balancing loss of one layer, taken over groups of `group_tokens` consecutive tokens; mean over groups.

    For each group, E * sum_e f_e * P_e: f_e is the fraction of the group's assignments that went to expert
    e (no gradient) and P_e the mean share of expert e in its tokens' scores. 1 when perfectly balanced, up
    to E / K when collapsed. A group of one sequence gives DeepSeek-V3's sequence-wise loss (arXiv
    2412.19437 eq. 17-20); a group of all tokens Switch's (arXiv 2101.03961 eq. 4) over the micro-batch.
    """
    num_experts, top_k = shares_TE.shape[-1], experts_TK.shape[-1]
    valid_GS = valid_T.unflatten(0, (-1, group_tokens))
    tokens_G1 = valid_GS.sum(dim=1, keepdim=True).clamp(min=1)
    shares_GE = (shares_TE * valid_T.unsqueeze(1)).unflatten(0, (-1, group_tokens)).sum(dim=1) / tokens_G1
    experts_GA = experts_TK.unflatten(0, (-1, group_tokens)).flatten(1)
    counts_GE = torch.zeros_like(shares_GE).scatter_add_(1, experts_GA, valid_GS.repeat_interleave(top_k, dim=1))
    return num_experts * (counts_GE / (tokens_G1 * top_k) * shares_GE).sum(dim=-1).mean()


@fusible()
def router_z_terms(logits_TE: torch.Tensor) -> torch.Tensor:
    """Squared log-partition of each token's router logits [T]; their mean is the z-loss (ST-MoE, arXiv 2202.08906 eq. 5)."""
    return torch.logsumexp(logits_TE, dim=-1).square()


class AttachLoss(torch.autograd.Function):
    """Pass `carrier` through unchanged and give `value` the gradient `weight()` in the backward pass.

    So a loss computed inside a layer trains the router without being added to the reported loss, and
    without being carried out of the layer (the technique of Megatron's MoEAuxLossAutoScaler). `weight` is
    called in the backward pass: by then it may know what no layer knew in the forward pass, such as the
    expert loads of the whole global batch.
    """

    @staticmethod
    def forward(ctx, carrier: torch.Tensor, value: torch.Tensor, weight: Callable[[], torch.Tensor]) -> torch.Tensor:
        ctx.weight, ctx.shape = weight, value.shape
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx, grad_carrier: torch.Tensor):
        return grad_carrier, ctx.weight().expand(ctx.shape), None


def updated_bias(bias_LE: torch.Tensor, counts_LE: torch.Tensor, rate: float) -> torch.Tensor:
    """Expert biases after one step: up by `rate` for experts below their layer's mean load, down above, mean zero.

    The sign update of DeepSeek-V3 (arXiv 2412.19437 section 2.1.2; 2408.15664 algorithm 1). The mean is
    taken out since it changes no choice and would drift.
    """
    bias_LE = bias_LE + rate * (counts_LE.mean(dim=-1, keepdim=True) - counts_LE).sign()
    return bias_LE - bias_LE.mean(dim=-1, keepdim=True)
