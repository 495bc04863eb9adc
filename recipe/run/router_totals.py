"""What the routers did since the last reading, over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recipe.run.autoep import moe_layers
from recipe.run.metrics import load_over_mean


class RouterTotals:
    """Expert loads and router losses of all layers since the last reading, summed over ranks in one all-reduce."""

    def __init__(self, module: nn.Module):
        self._layers = moe_layers(module)

    @torch.no_grad()
    def take(self) -> dict[str, Any]:
        """Read and reset: `tokens_per_expert` [layers][E], mean `aux_loss` and `z_loss` over layers and micro-batches."""
        counts = torch.stack([layer.tokens_per_expert for _, layer in self._layers]).double()
        losses = torch.stack([layer.router.loss_totals for _, layer in self._layers])
        totals = torch.cat((counts, losses.to(counts)), dim=1)
        torch.distributed.all_reduce(totals)
        for _, layer in self._layers:
            layer.tokens_per_expert.zero_()
            layer.router.loss_totals.zero_()
        counts, (aux_loss, z_loss, counted) = totals[:, :-3], totals[:, -3:].T
        tokens_per_expert = counts.long().tolist()
        return {
            "aux_loss": (aux_loss / counted).mean().item(),
            "z_loss": (z_loss / counted).mean().item(),
            "expert_load_max_over_mean": load_over_mean(tokens_per_expert).max().item(),
            "tokens_per_expert": tokens_per_expert,
        }
