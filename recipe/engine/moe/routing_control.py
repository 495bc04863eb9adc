"""One object that all routers of a run answer to in training: what they count, which losses they attach, their limits.

The loop tells it where the step is; the routers tell it what they see. A micro-batch's observations are
written, not added, into a row per layer, so that a recomputed forward pass changes nothing; the loop adds
them up after each forward pass. Ranks exchange at most one sum a step, and only when something needs it:
the expert bias, global-batch balance, or a step that is logged.

Legend: L MoE layers, E routed experts, K experts per token, O sources, T tokens of a micro-batch, S of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from recipe.base.run_config.routing import Routing
from recipe.model.recompute import recomputing
from recipe.model.routing.balance import AttachLoss, load_balancing_loss, router_z_terms, updated_bias
from recipe.model.routing.capacity import apply_capacity, expert_capacity
from recipe.model.routing.quantile import BINS, balanced_bias, margin_places

# Sums over tokens that a router writes on a logged step, in this order after its counts and shares.
SCALARS = ("aux_loss", "z_loss", "entropy", "top1_share", "dropped", "rerouted", "tokens")


@dataclass
class MicroBatch:
    """Where a forward pass stands, and which of its tokens count."""

    number: int  # of the step's accumulation steps
    valid_T: torch.Tensor  # bool
    source_T: torch.Tensor  # int64, number of each token's source


@dataclass
class StepSums:
    """A step's observations over all ranks, float64 on the device."""

    counts_LOE: torch.Tensor  # assignments chosen, before any limit
    shares_LE: torch.Tensor  # sums of score shares
    scalars: dict[str, torch.Tensor]  # name -> sums [L]
    max_logit_L: torch.Tensor


class RoutingControl:
    """See the module's text.

    Args:
        settings: the run config's routing section.
        bias_L: the expert biases [E] of the layers, updated in place.
        top_k, seq_length, accumulation: K, S, micro-batches a step.
        sources: names of the sources, in the loader's order.
        seed: of the jitter.
    """

    def __init__(
        self,
        settings: Routing,
        bias_L: list[torch.Tensor],
        *,
        top_k: int,
        seq_length: int,
        accumulation: int,
        sources: list[str],
        seed: int,
    ):
        self.settings, self.sources = settings, sources
        # What mitigations change for a while.
        self.aux_loss_coef, self.z_loss_coef = settings.aux_loss_coef, settings.z_loss_coef
        self.capacity_factor = settings.capacity.factor
        self.bias_L, self.top_k, self.seq_length, self.accumulation = bias_L, top_k, seq_length, accumulation
        self._seed = seed
        self._layers, self._experts = len(bias_L), bias_L[0].numel()
        device = bias_L[0].device
        width = (len(sources) + 1) * self._experts + len(SCALARS)
        self._seen = torch.zeros(self._layers, width, device=device)
        self._sums = torch.zeros(self._layers, width, dtype=torch.float64, device=device)
        self._max_logit_L = torch.zeros(self._layers, device=device)
        if self.balances_quantiles:
            # Counts, so that sums do not depend on their order; of a step's tokens in int32. The last place is for padding.
            places = self._experts * BINS + 1
            self._seen_margins = torch.zeros(self._layers, places, dtype=torch.int32, device=device)
            self._margins = torch.zeros_like(self._seen_margins)
            self._one = torch.ones(1, dtype=torch.int32, device=device)
        self._token_weight = torch.ones((), device=device)
        self._load_LE: torch.Tensor | None = None  # of the global batch, once it is known
        self._micro_batch: MicroBatch | None = None
        self._observing, self._step = False, 0

    @property
    def limits(self) -> bool:
        return self.settings.capacity.mode != "dropless"

    @property
    def balances_quantiles(self) -> bool:
        return self.settings.bias_update == "quantile"

    @property
    def starts_cold(self) -> bool:
        """Whether a forward pass over the whole step must find the biases of a run's first step, which no step has set."""
        return self.balances_quantiles and self.settings.trains_bias and self._step == 1

    @property
    def counts_first(self) -> bool:
        """Whether a forward pass over the whole step must count before the first backward pass needs the counts."""
        return self._balances_globally and self.accumulation > 1

    # What the loop calls.

    def begin_step(self, step: int, *, token_weight: torch.Tensor, observing: bool) -> None:
        """A step begins; `token_weight` is ranks over the global batch's valid tokens, `observing` asks for `sums`."""
        self._step, self._token_weight, self._observing = step, token_weight, observing
        self._forget()
        self._max_logit_L.fill_(float("-inf"))
        self._load_LE = None

    def begin_micro_batch(self, micro_batch: MicroBatch) -> None:
        self._micro_batch = micro_batch
        # What every layer needs of it.
        self._valid_T = micro_batch.valid_T.float()
        self._valid_A = self._valid_T.repeat_interleave(self.top_k)
        self._first_place_T1 = (micro_batch.source_T * self._experts).unsqueeze(1)

    def end_forward(self) -> None:
        """Add what the routers saw; before the backward pass, where a recomputation writes it again."""
        self._sums += self._seen
        if self.balances_quantiles:
            self._margins += self._seen_margins
        if self._balances_globally and self.accumulation == 1:
            self._share_load()

    def end_cold_start(self) -> None:
        """The passes over the first step's batch are over; it is trained on with the biases that balance it."""
        self._set_bias(self._balanced())
        self._forget()

    def end_counting(self) -> None:
        """The counting passes of a step are over; what follows is observed anew."""
        self._share_load()
        self._forget()

    def end_step(self, *, update_bias: bool) -> StepSums | None:
        """Sum over ranks what is needed, update the expert bias, and return the sums of an observed step."""
        found = self._reduced() if self._observing else None
        if update_bias and self.settings.trains_bias:
            self._set_bias(self._balanced() if self.balances_quantiles else self._moved(found))
        return found

    def raise_bias(self, experts_LE: torch.Tensor, amount: float) -> None:
        """Raise the bias of some experts, mean zero in their layer, so that tokens reach them again."""
        bias_LE = torch.stack(self.bias_L) + amount * experts_LE.to(self.bias_L[0])
        self._set_bias(bias_LE - bias_LE.mean(dim=-1, keepdim=True))

    # What the routers call.

    def noise_key(self, layer: int) -> tuple[int, ...]:
        assert self._micro_batch is not None
        return self._seed, self._step, self._micro_batch.number, dist.get_rank(), layer

    @torch.no_grad()
    def limit(
        self, choice_TE: torch.Tensor, chosen_TK: torch.Tensor, ep_group: dist.ProcessGroup | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The experts that take the assignments, and which are kept; None when all are."""
        capacity = self.settings.capacity
        if not self.limits:
            return chosen_TK, None
        assert self._micro_batch is not None
        valid_T, tokens = self._micro_batch.valid_T, chosen_TK.shape[0]
        first = 0
        if capacity.scope == "expert_parallel_group" and dist.get_world_size(ep_group) > 1:
            first = dist.get_rank(ep_group) * tokens
            choice_TE, chosen_TK, valid_T = (_gathered(t, ep_group) for t in (choice_TE, chosen_TK, valid_T))
        # Every rank of the group decides for all of its tokens alike, and takes its own.
        experts_TK, kept_TK = apply_capacity(
            choice_TE,
            chosen_TK,
            valid_T,
            expert_capacity(self.capacity_factor, chosen_TK.shape[0], self.top_k, self._experts),
            latest_first=capacity.gives_way == "latest_position",
            reroute=capacity.mode == "reroute",
        )
        return experts_TK[first : first + tokens], kept_TK[first : first + tokens]

    @torch.no_grad()
    def observe(self, layer: int, logits_TE, shares_TE, chosen_TK, experts_TK, kept_TK) -> None:
        """Write what a router did: always the counts, on an observed step the rest."""
        assert self._micro_batch is not None
        valid_T = self._valid_T
        row, counts_end = self._seen[layer], len(self.sources) * self._experts
        row[:counts_end].zero_().scatter_add_(0, (self._first_place_T1 + chosen_TK).flatten(), self._valid_A)
        if not self._observing:
            return
        row[counts_end : counts_end + self._experts] = valid_T @ shares_TE
        entropy_T = -torch.special.xlogy(shares_TE, shares_TE).sum(dim=-1)
        dropped = rerouted = torch.zeros((), device=row.device)
        if kept_TK is not None:
            dropped = (~kept_TK & self._micro_batch.valid_T.unsqueeze(1)).sum()
            rerouted = (kept_TK & (experts_TK != chosen_TK)).sum()
        row[-len(SCALARS) :] = torch.stack(
            (
                self._local_aux_loss(shares_TE, chosen_TK) * valid_T.sum(),
                router_z_terms(logits_TE) @ valid_T,
                entropy_T @ valid_T,
                shares_TE.amax(dim=-1) @ valid_T,
                dropped.float(),
                rerouted.float(),
                valid_T.sum(),
            )
        )
        largest = logits_TE.masked_fill(~self._micro_batch.valid_T.unsqueeze(1), float("-inf")).max()
        torch.maximum(self._max_logit_L[layer], largest, out=self._max_logit_L[layer])

    @torch.no_grad()
    def observe_margins(self, layer: int, choice_TE: torch.Tensor, chosen_TK: torch.Tensor) -> None:
        """Count how far each expert was from being chosen, before any limit, where the bias goes by it."""
        if not self.balances_quantiles or recomputing():
            return
        assert self._micro_batch is not None
        place_A = margin_places(choice_TE, chosen_TK, self._micro_batch.valid_T).flatten()
        self._seen_margins[layer].zero_().scatter_add_(0, place_A, self._one.expand_as(place_A))

    def attach_losses(self, layer: int, weights_TK, logits_TE, shares_TE, chosen_TK) -> torch.Tensor:
        """Put the router losses into the graph, by way of the weights, with the gradients of the global batch's means."""
        valid_T = self._valid_T
        if self.z_loss_coef > 0:
            z_sum = router_z_terms(logits_TE) @ valid_T
            weights_TK = AttachLoss.apply(weights_TK, z_sum, lambda: self.z_loss_coef * self._token_weight)
        if self.aux_loss_coef > 0 and self._balances_globally:
            weights_TK = AttachLoss.apply(weights_TK, valid_T @ shares_TE, lambda: self._share_gradient(layer))
        elif self.aux_loss_coef > 0:
            # The engine averages over ranks, and divides the loss it is given by the accumulation steps, not this one.
            weight = weights_TK.new_full((), self.aux_loss_coef / self.accumulation)
            weights_TK = AttachLoss.apply(weights_TK, self._local_aux_loss(shares_TE, chosen_TK), lambda: weight)
        return weights_TK

    @property
    def _balances_globally(self) -> bool:
        return self.settings.aux_loss_scope == "global_batch" and self.settings.aux_loss_coef > 0

    def _local_aux_loss(self, shares_TE: torch.Tensor, chosen_TK: torch.Tensor) -> torch.Tensor:
        tokens = self.seq_length if self.settings.aux_loss_scope == "sequence" else shares_TE.shape[0]
        return load_balancing_loss(shares_TE, chosen_TK, self._valid_T, tokens)

    def _share_gradient(self, layer: int) -> torch.Tensor:
        """Gradient of the coefficient times E * sum_e f_e P_e by the sum of shares: f over the global batch, P a mean."""
        assert self._load_LE is not None, "the global batch's loads are summed before the backward pass"
        fraction_E = self._load_LE[layer] / self._load_LE[layer].sum()
        return (self.aux_loss_coef * self._experts * fraction_E * self._token_weight).float()

    def _share_load(self) -> None:
        counts = self._sums[:, : len(self.sources) * self._experts]
        self._load_LE = counts.unflatten(1, (-1, self._experts)).sum(dim=1)
        dist.all_reduce(self._load_LE)

    def _reduced(self) -> StepSums:
        # A sum over ranks also carries the maxima, each rank's in a column of its own.
        maxima_LR = torch.zeros(self._layers, dist.get_world_size(), dtype=torch.float64, device=self._sums.device)
        maxima_LR[:, dist.get_rank()] = self._max_logit_L
        summed = torch.cat((self._sums, maxima_LR), dim=1)
        dist.all_reduce(summed)
        counts, shares, scalars, maxima = summed.split(
            (len(self.sources) * self._experts, self._experts, len(SCALARS), dist.get_world_size()), dim=1
        )
        return StepSums(
            counts.unflatten(1, (-1, self._experts)),
            shares,
            dict(zip(SCALARS, scalars.T, strict=True)),
            maxima.amax(dim=1),
        )

    def _moved(self, found: StepSums | None) -> torch.Tensor:
        """The biases [L, E] after a step of the rate against the loads of the global batch."""
        if found is not None:
            self._load_LE = found.counts_LOE.sum(dim=1)
        elif self._load_LE is None:
            self._share_load()
        assert self._load_LE is not None
        return updated_bias(torch.stack(self.bias_L), self._load_LE, self.settings.bias_update_rate)

    def _balanced(self) -> torch.Tensor:
        """The biases [L, E] that would have balanced the global batch."""
        dist.all_reduce(self._margins)
        histogram_LEB = self._margins[:, :-1].unflatten(1, (self._experts, BINS))
        return balanced_bias(torch.stack(self.bias_L), histogram_LEB, self.top_k)

    def _forget(self) -> None:
        self._sums.zero_()
        if self.balances_quantiles:
            self._margins.zero_()

    def _set_bias(self, bias_LE: torch.Tensor) -> None:
        for bias_E, new_E in zip(self.bias_L, bias_LE, strict=True):
            bias_E.copy_(new_E)


def _gathered(local: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Rows of all ranks of a group, in rank order."""
    as_bytes = local.dtype == torch.bool
    local = local.to(torch.uint8) if as_bytes else local.contiguous()
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    return torch.cat(parts).bool() if as_bytes else torch.cat(parts)
