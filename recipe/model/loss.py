"""Next-token loss: plain from logits, and in chunks from hidden states so that the logits never exist whole.

With a vocabulary of 131,072, one token's logits in fp32 are 512 KiB and a micro-batch of 16,384 tokens would hold
8 GiB of them, and their gradient as much again. In chunks both exist for `chunk_tokens` tokens at a time.

Legend: T tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recipe.base.model_shape import IGNORED
from recipe.model.fusion import fusible
from recipe.model.matmul import add_fp32_matmul


def next_token_loss(logits_BSV: torch.Tensor, targets_BS: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross entropy in nats, in fp32; targets of -100 count for nothing."""
    return F.cross_entropy(
        logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), ignore_index=IGNORED, reduction=reduction
    )


def summed_loss(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor, chunk_tokens: int
) -> torch.Tensor:
    """Sum over tokens of the next-token loss in nats, from hidden states and the head's weight."""
    # `ctx.needs_input_grad` tells what requires gradients, under no_grad too; whether any are wanted is known out here.
    return ChunkedLoss.apply(hidden_TD, weight_VD, targets_T, chunk_tokens, torch.is_grad_enabled())


@torch.no_grad()
def token_scores(
    hidden_TD: torch.Tensor, weight_VD: torch.Tensor, targets_T: torch.Tensor, chunk_tokens: int
) -> torch.Tensor:
    """Each target's log-probability in nats, and 1 where it is the most probable token, fp32 [T, 2]; 0 for targets of -100."""
    scores = []
    for start in range(0, hidden_TD.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        logits_CV, targets_C = F.linear(hidden_TD[rows], weight_VD), targets_T[rows]
        nats_C = -next_token_loss(logits_CV.unsqueeze(0), targets_C, reduction="none")
        scores.append(torch.stack((nats_C, (logits_CV.argmax(dim=1) == targets_C).float()), dim=1))
    return torch.cat(scores)


class ChunkedLoss(torch.autograd.Function):
    """Sum of cross entropies; a chunk's gradients are computed while its logits exist, and kept for the backward pass.

    What is kept: the gradients of the hidden states in their precision, and of the weight in fp32 until all
    chunks are added. The logits are not computed twice.
    """

    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, targets_T, chunk_tokens: int, gradients: bool) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        needs_hidden, needs_weight = (gradients and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_TD) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        for start in range(0, hidden_TD.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            hidden_CD, targets_C = hidden_TD[rows], targets_T[rows]
            logits_CV = F.linear(hidden_CD, weight_VD)
            if grad_hidden is None and grad_weight is None:
                total += next_token_loss(logits_CV.unsqueeze(0), targets_C, reduction="sum")
                continue
            loss_C, grad_CV = loss_and_gradient(logits_CV, targets_C)
            total += loss_C.sum()
            if grad_hidden is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden[rows])
            if grad_weight is not None:
                add_fp32_matmul(grad_weight, grad_CV.T, hidden_CD)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_total: torch.Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
            None,
        )


@fusible(rows_vary=True)
def loss_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token in nats [C], fp32, and its gradient by the logits: softmax - one-hot, in their precision."""
    logits_fp32 = logits_CV.float()
    log_total_C = logits_fp32.logsumexp(dim=1)
    counted_C, target_C = targets_C != IGNORED, targets_C.clamp(min=0)
    row_C = torch.arange(targets_C.numel(), device=targets_C.device)
    log_share_C = logits_fp32[row_C, target_C] - log_total_C
    # Where nothing is counted, softmax over an infinite total is zero.
    log_total_C = torch.where(counted_C, log_total_C, torch.inf)
    grad_CV = (logits_fp32 - log_total_C.unsqueeze(1)).exp_().to(logits_CV.dtype)
    grad_CV[row_C, target_C] = torch.where(counted_C, log_share_C.expm1(), 0.0).to(logits_CV.dtype)
    return torch.where(counted_C, -log_share_C, 0.0), grad_CV
