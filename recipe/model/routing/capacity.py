"""Capacity of experts: which assignments are kept, dropped, or sent to another expert.

An expert takes at most `capacity` assignments of the tokens it is decided for. The decision has no gradient;
weights are taken afterwards. `apply_capacity` is what runs; a loop over tokens in the tests says what it means.

Legend: T tokens, E routed experts, K experts per token, A = T*K assignments (token-major), M those without a slot.
"""

from __future__ import annotations

import math

import torch


def expert_capacity(factor: float, tokens: int, top_k: int, num_experts: int) -> int:
    """Assignments an expert takes: ceil(factor * tokens * K / E), its fair share times the factor (GShard, arXiv 2006.16668)."""
    return math.ceil(factor * tokens * top_k / num_experts)


def apply_capacity(
    preferences_TE: torch.Tensor,
    experts_TK: torch.Tensor,
    valid_T: torch.Tensor,
    capacity: int,
    *,
    latest_first: bool,
    reroute: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep at most `capacity` assignments per expert.

    Args:
        preferences_TE: biased scores, -inf where a token may not go.
        experts_TK: the router's choice.
        valid_T: bool; assignments of padding are never kept.
        latest_first: whether those of the latest tokens give way, instead of those with the lowest preference.
        reroute: in rounds, every assignment without a slot asks for its token's best expert among those
            that have room and that the token does not use; a round ends with the experts over capacity
            turning down those that give way; until all have a slot or nowhere is left to go. Of several
            assignments of a token, the first asks.

    Returns:
        experts_TK: with the experts that assignments were rerouted to.
        kept_TK: bool.
    """
    num_experts, top_k = preferences_TE.shape[-1], experts_TK.shape[-1]
    experts_A = experts_TK.flatten().clone()
    wanted_A = valid_T.repeat_interleave(top_k)
    strength_A = None if latest_first else preferences_TE.gather(1, experts_TK).flatten()
    room_E = torch.full((num_experts,), capacity, device=experts_A.device)
    kept_A = _served(torch.where(wanted_A, experts_A, num_experts), strength_A, room_E)
    while reroute:
        missing_M = (wanted_A & ~kept_A).nonzero().squeeze(1)
        room_E = capacity - torch.bincount(experts_A[kept_A], minlength=num_experts)
        token_M = missing_M // top_k
        # One assignment of a token at a time: the next would have to know where the first one went.
        first_M = torch.ones_like(token_M, dtype=torch.bool)
        first_M[1:] = token_M[1:] != token_M[:-1]
        asking, token = missing_M[first_M], token_M[first_M]
        used = torch.where(kept_A.view(-1, top_k)[token], experts_A.view(-1, top_k)[token], num_experts)
        closed = torch.zeros(token.numel(), num_experts + 1, dtype=torch.bool, device=token.device)
        closed = closed.scatter_(1, used, True)[:, :num_experts] | (room_E == 0)
        best, expert = preferences_TE[token].masked_fill(closed, float("-inf")).max(dim=1)
        possible = best > float("-inf")
        if not possible.any():
            break
        asking, expert, best = asking[possible], expert[possible], best[possible]
        served = _served(expert, None if latest_first else best, room_E)
        experts_A[asking[served]] = expert[served]
        kept_A[asking[served]] = True
    return experts_A.view_as(experts_TK), kept_A.view_as(experts_TK)


def _served(expert_A: torch.Tensor, strength_A: torch.Tensor | None, room_E: torch.Tensor) -> torch.Tensor:
    """Which assignments are among the strongest `room_E` of their expert; those of expert number E are not.

    Without strengths, and among equal ones, the earlier assignment goes first.
    """
    if strength_A is None:
        order = expert_A.argsort(stable=True)
    else:
        order = strength_A.argsort(descending=True, stable=True)
        order = order[expert_A[order].argsort(stable=True)]
    sorted_A = expert_A[order]
    # Not bincount, which waits for the device to learn how many bins there are.
    sizes = room_E.new_zeros(room_E.numel() + 1).scatter_add_(0, sorted_A, torch.ones_like(sorted_A))
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(expert_A.numel(), device=expert_A.device) - start[sorted_A]
    room = torch.cat((room_E, room_E.new_zeros(1)))
    return torch.empty_like(rank, dtype=torch.bool).index_copy_(0, order, rank < room[sorted_A])
