"""From hidden states to chosen experts and their weights.

Legend: T tokens, D hidden size, E routed experts, K experts per token.
"""

from __future__ import annotations

import torch

from recipe.model.fusion import fusible
from recipe.model.matmul import fp32_matmul


def router_logits(x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
    """Gate matmul in fp32, from inputs of any precision."""
    with torch.autocast(device_type=x_TD.device.type, enabled=False):
        return _Fp32Linear.apply(x_TD, weight_ED)


class _Fp32Linear(torch.autograd.Function):
    """F.linear in fp32 that keeps its inputs for the backward pass as they are, not as fp32 copies.

    A layer's hidden states are kept in bf16 anyway; 16,384 tokens of 2,048 in fp32 would be 128 MiB a layer more.
    A product of two bf16 numbers is exact in fp32, so bf16 inputs need no fp32 matmul, which has a fifteenth of the
    bf16 FLOP/s of an A100: it is the same sum. In the backward pass the fp32 gradient is a sum of two bf16 numbers,
    exact to 2**-16, before results that are rounded to bf16, 2**-9, themselves.
    """

    @staticmethod
    def forward(ctx, x_TD: torch.Tensor, weight_ED: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        return fp32_matmul(x_TD, weight_ED.T)

    @staticmethod
    def backward(ctx, grad_TE: torch.Tensor):
        x_TD, weight_ED = ctx.saved_tensors
        if x_TD.dtype != torch.bfloat16:
            return (grad_TE @ weight_ED.float()).to(x_TD.dtype), (grad_TE.T @ x_TD.float()).to(weight_ED.dtype)
        parts_TEE = _bf16_parts(grad_TE)
        grad_x = fp32_matmul(parts_TEE, torch.cat((weight_ED, weight_ED)))
        upper_ED, lower_ED = fp32_matmul(parts_TEE.T, x_TD).chunk(2)
        return grad_x.to(x_TD.dtype), (upper_ED + lower_ED).to(weight_ED.dtype)


def _bf16_parts(grad_TE: torch.Tensor) -> torch.Tensor:
    """Two bf16 numbers [T, 2E] whose sum is a gradient's fp32 one. Never compiled: inductor skips such roundings."""
    upper_TE = grad_TE.to(torch.bfloat16)
    return torch.cat((upper_TE, (grad_TE - upper_TE.float()).to(torch.bfloat16)), dim=1)


def router_scores(logits_TE: torch.Tensor, scoring_func: str) -> torch.Tensor:
    """Scores in (0, 1) of every expert for every token."""
    if scoring_func == "sigmoid":
        return logits_TE.sigmoid()
    if scoring_func == "softmax":
        return logits_TE.softmax(dim=-1)
    raise ValueError(f"unknown scoring_func '{scoring_func}'")


@fusible()
def scores_and_choice(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor | None,
    scoring_func: str,
    top_k: int,
    n_group: int,
    topk_group: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and what the choice goes by [T, E], and the K experts that each token chooses, unordered."""
    scores_TE = router_scores(logits_TE, scoring_func)
    choice_TE = preferences(scores_TE, bias_E, n_group, topk_group)
    return scores_TE, choice_TE, choice_TE.topk(top_k, dim=-1, sorted=False).indices


@fusible()
def score_shares(scores_TE: torch.Tensor) -> torch.Tensor:
    """Each expert's share of its token's scores; rows sum to 1 (softmax scores are their own shares)."""
    return scores_TE / scores_TE.sum(dim=-1, keepdim=True)


def jitter(x_TD: torch.Tensor, strength: float, key: tuple[int, ...]) -> torch.Tensor:
    """The router's input times uniform noise in [1 - strength, 1 + strength] (Switch Transformers, arXiv 2101.03961).

    The noise is a function of `key` alone, so that a recomputed forward pass and a resumed run see the same.
    """
    generator = torch.Generator(device=x_TD.device).manual_seed(hash(key) & 0x7FFF_FFFF_FFFF_FFFF)
    noise = torch.empty_like(x_TD, dtype=torch.float32).uniform_(1 - strength, 1 + strength, generator=generator)
    return (x_TD.float() * noise).to(x_TD.dtype)


def preferences(scores_TE: torch.Tensor, bias_E: torch.Tensor | None, n_group: int, topk_group: int) -> torch.Tensor:
    """What the choice goes by, without gradient: biased scores, -inf where a token may not go.

    With `n_group > 1`, only the `topk_group` groups with the largest sum of their two best biased scores
    are eligible (DeepSeek-V3, arXiv 2412.19437 section 2.1.2); groups are consecutive experts, as the
    experts of a node are.
    """
    choice_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if n_group == 1:
        return choice_TE
    grouped_TGe = choice_TE.unflatten(-1, (n_group, -1))
    group_scores_TG = grouped_TGe.topk(2, dim=-1).values.sum(dim=-1)
    chosen_groups = group_scores_TG.topk(topk_group, dim=-1, sorted=False).indices
    eligible_TG = torch.zeros_like(group_scores_TG, dtype=torch.bool).scatter_(1, chosen_groups, True)
    return grouped_TGe.masked_fill(~eligible_TG.unsqueeze(-1), float("-inf")).flatten(1)


@fusible()
def weights_of(
    scores_TE: torch.Tensor, experts_TK: torch.Tensor, *, norm_topk_prob: bool, routed_scaling_factor: float
) -> torch.Tensor:
    """Weights [T, K] of chosen experts from the unbiased scores, where the gradient flows."""
    weights_TK = scores_TE.gather(1, experts_TK)
    if norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    return weights_TK * routed_scaling_factor
