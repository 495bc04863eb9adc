"""Quantile balancing: the expert biases with which every expert is chosen by its fair share of a step's tokens.

An expert's margin at a token is its biased score minus what it must beat there to be chosen: the K-th best biased score of
the token's other experts. The expert is chosen where its margin is positive, so K/E of the tokens choose it if its bias falls
by the 1 - K/E quantile of its margins. All experts move at once, and each by its own quantile, from one histogram of counts.

The quantile as an update: Su, kexue.fm/archives/11619, as the dual of an optimal assignment; histograms summed over the global
batch: Kimi K3, in NVIDIA/Megatron-LM pull request 6637. Both take one cutoff for all of a token's experts, the (K+1)-th best
biased score. That is what chosen experts must beat; others must beat the K-th best, or their biases rise too little at first.

Legend: T tokens, E routed experts, K experts per token, L layers, B bins.
"""

from __future__ import annotations

import torch

from recipe.model.fusion import fusible

# Bins on each side of margin 0. The edges are at squares: a layer far from balance is measured coarsely, then finely.
# Measured (benchmarks/results/balance.json, bins): with 256 bins a quantile is off by 0.0011 where the busiest expert has 6.5 times the mean,
# and by 0.0004 two updates later; then max/mean is that of sorted margins, 1.01, on the same tokens.
SIDE = 128
BINS = 2 * SIDE
REACH = 2.0  # margins beyond count in the outermost bins; of sigmoid scores, at biases up to 1 apart, there are none


@fusible()
def margin_places(choice_TE: torch.Tensor, chosen_TK: torch.Tensor, valid_T: torch.Tensor) -> torch.Tensor:
    """Where the margins [T, E] count in a layer's histogram [E * B + 1]; padding counts in its last place.

    Args:
        choice_TE: biased scores.
        chosen_TK: each token's K best.
        valid_T: bool.
    """
    num_experts = choice_TE.shape[-1]
    chosen_TE = torch.zeros_like(choice_TE, dtype=torch.bool).scatter(1, chosen_TK, True)
    worst_chosen_T1 = choice_TE.masked_fill(~chosen_TE, float("inf")).amin(dim=1, keepdim=True)
    best_other_T1 = choice_TE.masked_fill(chosen_TE, float("-inf")).amax(dim=1, keepdim=True)
    margin_TE = choice_TE - torch.where(chosen_TE, best_other_T1, worst_chosen_T1)
    distance_TE = (margin_TE.abs() / REACH).sqrt() * SIDE
    bin_TE = torch.copysign(distance_TE, margin_TE).floor() + SIDE
    bin_TE = bin_TE.nan_to_num(SIDE).clamp(0, BINS - 1).long()  # the guard skips a step of NaN, which still has a place
    place_TE = torch.arange(num_experts, device=choice_TE.device) * BINS + bin_TE
    return torch.where(valid_T.unsqueeze(1), place_TE, num_experts * BINS)


def bin_edges(device: torch.device | None = None) -> torch.Tensor:
    """The margins [B + 1] between which bins lie, float64."""
    steps = torch.arange(-SIDE, SIDE + 1, dtype=torch.float64, device=device) / SIDE
    return REACH * steps * steps.abs()


def margin_quantiles(histogram_LEB: torch.Tensor, share: float) -> torch.Tensor:
    """The margins [L, E] below which `share` of the tokens are, float64; within a bin as if its margins were spread evenly."""
    below_LEB = histogram_LEB.cumsum(dim=-1).double()
    rank_LE1 = share * below_LEB[..., -1:]
    bin_LE1 = (below_LEB < rank_LE1).sum(dim=-1, keepdim=True).clamp(max=BINS - 1)
    inside_LE1 = histogram_LEB.gather(-1, bin_LE1).double()
    begun_LE1 = below_LEB.gather(-1, bin_LE1) - inside_LE1
    part_LE1 = ((rank_LE1 - begun_LE1) / inside_LE1.clamp(min=1)).clamp(0, 1)
    edges_B = bin_edges(histogram_LEB.device)
    return torch.lerp(edges_B[bin_LE1], edges_B[bin_LE1 + 1], part_LE1).squeeze(-1)


def balanced_bias(bias_LE: torch.Tensor, histogram_LEB: torch.Tensor, top_k: int) -> torch.Tensor:
    """Expert biases after one step, mean zero in each layer; a step without a token changes none.

    The mean is taken out since it changes no choice and would drift.
    """
    moved_LE = bias_LE - margin_quantiles(histogram_LEB, 1 - top_k / bias_LE.shape[-1])
    return (moved_LE - moved_LE.mean(dim=-1, keepdim=True)).to(bias_LE.dtype)
