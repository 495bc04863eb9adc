"""The oracle of the routing tests: one process, one token at a time, lists and loops, no cleverness.

`PlainMoe` stands where the model has its MoE blocks. It is given a micro-batch of a rank (or those of an
expert-parallel group, when capacity is theirs together) at a time and remembers what the losses need.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from recipe.base.run_config.routing import Capacity, Routing
from recipe.model import RecipeMoeConfig
from recipe.model.modeling import MoeBlock
from recipe.model.routing.quantile import bin_edges
from recipe.model.routing.router import jitter


@dataclass
class Unit:
    """The tokens that capacity is decided for."""

    valid: list[bool]
    rank_tokens: int  # tokens of one rank's micro-batch
    noise_key: tuple[int, ...] = ()


@dataclass
class Seen:
    """What one layer saw of one unit; graph-carrying tensors per token."""

    unit: Unit
    logits: list[torch.Tensor]
    shares: list[torch.Tensor]
    chosen: list[list[int]]
    dropped: int
    rerouted: int


@dataclass
class Oracle:
    """All layers' blocks of a model, and the settings they go by."""

    config: RecipeMoeConfig
    routing: Routing
    unit: Unit | None = None
    layers: list[list[Seen]] = field(default_factory=list)

    def install(self, model: nn.Module) -> None:
        for layer in model.model.layers:
            if isinstance(layer.mlp, MoeBlock):
                self.layers.append([])
                layer.mlp = PlainMoe(layer.mlp, self, len(self.layers) - 1)

    def losses(self, seq_length: int) -> torch.Tensor:
        """Sum over layers of the scaled router losses of the whole global batch."""
        total = torch.zeros(())
        for seen in self.layers:
            total = total + self.routing.aux_loss_coef * self.aux_loss(seen, seq_length)
            total = total + self.routing.z_loss_coef * self.z_loss(seen)
        return total

    def z_loss(self, seen: list[Seen]) -> torch.Tensor:
        terms = [
            torch.log(torch.exp(logits).sum()) ** 2
            for s in seen
            for logits, valid in zip(s.logits, s.unit.valid, strict=True)
            if valid
        ]
        return sum(terms) / len(terms)

    def aux_loss(self, seen: list[Seen], seq_length: int) -> torch.Tensor:
        tokens = [(s.shares[t], s.chosen[t], s.unit.valid[t]) for s in seen for t in range(len(s.chosen))]
        size = {
            "sequence": seq_length,
            "micro_batch": seen[0].unit.rank_tokens,
            "global_batch": len(tokens),
        }[self.routing.aux_loss_scope]
        groups = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        return sum(self._group_loss(group) for group in groups) / len(groups)

    def _group_loss(self, group) -> torch.Tensor:
        counted = [(share, chosen) for share, chosen, valid in group if valid]
        experts, top_k = self.config.n_routed_experts, self.config.num_experts_per_tok
        loss = torch.zeros(())
        for e in range(experts):
            fraction = sum(e in chosen for _, chosen in counted) / (len(counted) * top_k)
            loss = loss + experts * fraction * sum(share[e] for share, _ in counted) / len(counted)
        return loss

    def counts(self, layer: int) -> list[int]:
        """Assignments of valid tokens to each expert, as chosen."""
        chosen = [e for s in self.layers[layer] for t, es in enumerate(s.chosen) if s.unit.valid[t] for e in es]
        return [chosen.count(e) for e in range(self.config.n_routed_experts)]

    def fair_margins(self, seen: list[Seen], bias: torch.Tensor) -> list[tuple[float, float]]:
        """For each expert the bin that the 1 - K/E quantile of its sorted margins lies in: its lower and upper edge."""
        experts, top_k = self.config.n_routed_experts, self.config.num_experts_per_tok
        logits = [row for s in seen for row, valid in zip(s.logits, s.unit.valid, strict=True) if valid]
        wishes = [(torch.sigmoid(row.detach()) + bias).tolist() for row in logits]
        edges = bin_edges().tolist()
        bins = []
        for e in range(experts):
            margins = sorted(w[e] - sorted(w[:e] + w[e + 1 :])[-top_k] for w in wishes)
            margin = margins[math.ceil(len(margins) * (1 - top_k / experts)) - 1]
            bins.append(next((low, high) for low, high in itertools.pairwise(edges) if low <= margin < high))
        return bins


class PlainMoe(nn.Module):
    def __init__(self, block: MoeBlock, oracle: Oracle, number: int):
        super().__init__()
        self.gate, self.experts = block.gate, block.experts
        self.shared_experts = block.shared_experts if block.config.n_shared_experts else None
        self.oracle, self.number = [oracle], number  # in a list, to be no submodule

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        (oracle,), config = self.oracle, self.oracle[0].config
        unit, capacity = oracle.unit, oracle.routing.capacity
        x_TD = x_BSD.flatten(0, 1)
        routed = x_TD
        if oracle.routing.jitter:
            routed = jitter(x_TD, oracle.routing.jitter, (*unit.noise_key, self.number))
        logits = [self.gate.weight @ x for x in routed]
        scores = [torch.sigmoid(v) if config.scoring_func == "sigmoid" else torch.softmax(v, -1) for v in logits]
        wishes = [self._wishes(s) for s in scores]
        chosen = [sorted(range(len(w)), key=lambda e, w=w: -w[e])[: config.num_experts_per_tok] for w in wishes]
        final, kept = [list(c) for c in chosen], [[True] * len(c) for c in chosen]
        if capacity.mode != "dropless":
            final, kept = plain_limit(wishes, chosen, unit.valid, capacity)
        oracle.layers[self.number].append(
            Seen(
                unit,
                logits,
                [s / s.sum() for s in scores],
                chosen,
                sum(not k for t, ks in enumerate(kept) if unit.valid[t] for k in ks),
                sum(
                    k and f != c
                    for fs, cs, ks in zip(final, chosen, kept, strict=True)
                    for f, c, k in zip(fs, cs, ks, strict=True)
                ),
            )
        )
        out = [self._routed(x, s, f, k) for x, s, f, k in zip(x_TD, scores, final, kept, strict=True)]
        routed_BSD = torch.stack(out).view_as(x_BSD)
        return routed_BSD if self.shared_experts is None else routed_BSD + self.shared_experts(x_BSD)

    def _wishes(self, scores: torch.Tensor) -> list[float]:
        config = self.oracle[0].config
        wishes = [s + b for s, b in zip(scores.tolist(), self.gate.e_score_correction_bias.tolist(), strict=True)]
        size = len(wishes) // config.n_group
        groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
        groups.sort(key=lambda members: -sum(sorted((wishes[e] for e in members), reverse=True)[:2]))
        eligible = {e for members in groups[: config.topk_group] for e in members}
        return [w if e in eligible else -math.inf for e, w in enumerate(wishes)]

    def _routed(self, x: torch.Tensor, scores: torch.Tensor, experts: list[int], kept: list[bool]) -> torch.Tensor:
        config = self.oracle[0].config
        out, total = torch.zeros_like(x), sum(scores[e] for e in experts)
        for e, keep in zip(experts, kept, strict=True):
            if keep:
                gate, up = (self.experts.gate_up_proj[e] @ x).chunk(2)
                weight = scores[e] / total if config.norm_topk_prob else scores[e]
                out = out + config.routed_scaling_factor * weight * (self.experts.down_proj[e] @ (F.silu(gate) * up))
        return out


def plain_limit(
    wishes: list[list[float]], chosen: list[list[int]], valid: list[bool], capacity: Capacity, places: int | None = None
) -> tuple[list[list[int]], list[list[bool]]]:
    """The rule of `recipe.model.routing.capacity.apply_capacity`, by hand; `places` overrides the capacity's number."""
    experts, top_k = len(wishes[0]), len(chosen[0])
    if places is None:
        places = math.ceil(capacity.factor * len(wishes) * top_k / experts)
    final, kept = [list(c) for c in chosen], [[False] * top_k for _ in chosen]
    room = [places] * experts

    def serve(asking: list[tuple[int, int, int]]) -> None:
        """Of (token, slot, expert), each expert takes the strongest while it has room."""
        latest = capacity.gives_way == "latest_position"
        asking = sorted(asking, key=lambda a: (a[0], a[1]) if latest else (-wishes[a[0]][a[2]], a[0], a[1]))
        for token, slot, expert in asking:
            if room[expert] > 0:
                room[expert] -= 1
                final[token][slot], kept[token][slot] = expert, True

    serve([(t, k, e) for t, es in enumerate(chosen) if valid[t] for k, e in enumerate(es)])
    while capacity.mode == "reroute":
        asking = []
        for token in range(len(wishes)):
            missing = [k for k in range(top_k) if not kept[token][k]]
            if not valid[token] or not missing:
                continue
            used = {final[token][k] for k in range(top_k) if kept[token][k]}
            open_ = [e for e in range(experts) if room[e] > 0 and e not in used and wishes[token][e] > -math.inf]
            if open_:
                asking.append((token, missing[0], max(open_, key=lambda e: wishes[token][e])))
        if not asking:
            break
        serve(asking)
    return final, kept
