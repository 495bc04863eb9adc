"""What a step's sums over all ranks say about routing, layer by layer.

Legend: L MoE layers, E routed experts, K experts per token, O sources.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from recipe.engine.moe.routing_control import RoutingControl, StepSums
from recipe.telemetry.metrics import load_over_mean


def routing_metrics(sums: StepSums, control: RoutingControl) -> dict[str, Any]:
    """Metrics of one step; every value of `routing` is a list with an entry per MoE layer.

    Returns:
        aux_loss, z_loss: means over layers, without their coefficients; `scaled_...` with them.
        expert_load_max_over_mean: of the worst layer.
        tokens_per_expert [L][E]: assignments that tokens chose, before any limit.
        routing: by name [L]:
            load_max_over_mean, load_min_over_mean, load_cv (standard deviation over mean), dead_experts
            (a number), entropy (of a token's score shares over ln E, mean), top1_share (of a token's scores,
            mean), drop_rate and reroute_rate (of assignments), bias_norm, aux_loss, z_loss, max_logit,
            source_information: how much knowing the expert tells of the source of a token, in parts of what
            there is to know (mutual information over the entropy of the sources), 0 to 1.
        sources: by source [L]: load_max_over_mean of its tokens alone.
    """
    counts_LE = sums.counts_LOE.sum(dim=1)
    load_LE = load_over_mean(counts_LE)
    tokens_L = sums.scalars["tokens"]
    mean = {name: sums.scalars[name] / tokens_L for name in ("aux_loss", "z_loss", "entropy", "top1_share")}
    aux_loss_L = mean["aux_loss"]
    if control.settings.aux_loss_scope == "global_batch":
        fraction_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True)
        aux_loss_L = load_LE.shape[1] * (fraction_LE * sums.shares_LE / tokens_L.unsqueeze(1)).sum(dim=1)
    by_layer = {
        "load_max_over_mean": load_LE.amax(dim=1),
        "load_min_over_mean": load_LE.amin(dim=1),
        "load_cv": load_LE.std(dim=1, correction=0),
        "dead_experts": (counts_LE == 0).sum(dim=1),
        "entropy": mean["entropy"] / math.log(load_LE.shape[1]),
        "top1_share": mean["top1_share"],
        "drop_rate": sums.scalars["dropped"] / counts_LE.sum(dim=1),
        "reroute_rate": sums.scalars["rerouted"] / counts_LE.sum(dim=1),
        "bias_norm": torch.stack(control.bias_L).norm(dim=1),
        "aux_loss": aux_loss_L,
        "z_loss": mean["z_loss"],
        "max_logit": sums.max_logit_L,
        "source_information": source_information(sums.counts_LOE),
    }
    aux_loss, z_loss = aux_loss_L.mean().item(), mean["z_loss"].mean().item()
    of_sources = {name: sums.counts_LOE[:, number] for number, name in enumerate(control.sources)}
    return {
        "aux_loss": aux_loss,
        "z_loss": z_loss,
        "scaled_aux_loss": control.aux_loss_coef * aux_loss,
        "scaled_z_loss": control.z_loss_coef * z_loss,
        "expert_load_max_over_mean": by_layer["load_max_over_mean"].max().item(),
        "tokens_per_expert": counts_LE.long().tolist(),
        "routing": {name: values.tolist() for name, values in by_layer.items()},
        "sources": {
            name: {"load_max_over_mean": load_over_mean(counts).amax(dim=1).tolist()}
            for name, counts in of_sources.items()
            if counts.sum() > 0
        },
    }


def source_information(counts_LOE: torch.Tensor) -> torch.Tensor:
    """Mutual information of source and expert over the entropy of the sources [L]; 0 with a single source."""
    joint = counts_LOE / counts_LOE.sum(dim=(1, 2), keepdim=True)
    source_LO, expert_LE = joint.sum(dim=2), joint.sum(dim=1)
    entropy = lambda p, dims: -torch.special.xlogy(p, p).sum(dim=dims)  # noqa: E731
    of_sources = entropy(source_LO, 1)
    mutual = of_sources + entropy(expert_LE, 1) - entropy(joint, (1, 2))
    return torch.where(of_sources > 0, mutual / of_sources.clamp(min=1e-12), 0.0)
