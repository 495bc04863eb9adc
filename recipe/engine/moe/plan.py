"""Which rows of a micro-batch go where: made once a layer, and kept for the second pass of a recomputed one.

The tokens are divided into parts, whose rows are exchanged and computed apart. All counts are exchanged together, and read by
the host once.

Legend: T tokens of a part, K experts per token, A = T*K assignments, E routed experts, L experts of a rank, P parts, R ranks of
the expert-parallel group, N rows received, M rows grouped by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import deepspeed
import torch
import torch.distributed as dist

from recipe.engine.deepspeed_private import count_tokens_per_expert
from recipe.engine.moe.exchange import Exchange
from recipe.model.routing.dispatch import (
    combine,
    dispatch,
    grouped_positions,
    received_positions,
    sorted_positions,
)


def counts_of_parts(experts: list[torch.Tensor], num_experts: int) -> list[torch.Tensor]:
    """Assignments of each part to each expert, int32; those that are dropped, to expert E, are not counted."""
    return [count_tokens_per_expert(experts_TK, num_experts + 1)[:-1] for experts_TK in experts]


class LocalPlan:
    """All experts are this rank's: rows go straight to where their grouped GEMM wants them."""

    def __init__(self, experts_TK: torch.Tensor, counts_E: torch.Tensor):
        self._top_k = experts_TK.shape[1]
        self._positions = grouped_positions(experts_TK, counts_E)

    def journeys(self) -> list[LocalJourney]:
        """One pass of the layer over its one part."""
        return [LocalJourney(*self._positions, self._top_k)]


@dataclass
class LocalJourney:
    """Rows of a part on their way to the experts and back."""

    position_A: torch.Tensor
    assignment_M: torch.Tensor
    sizes_E: torch.Tensor  # rows of each expert's group
    top_k: int

    def depart(self, x_TD: torch.Tensor, weights_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and, each a row of one column, their routing weights leave their tokens."""
        where = self.position_A, self.assignment_M
        weights_A1 = weights_TK.reshape(-1, 1)
        return dispatch(x_TD, *where, self.top_k, keep="rows"), dispatch(weights_A1, *where, 1, keep="rows")

    def arrive(self, rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [M, D] and weights [M] as their experts want them."""
        return rows, weights.squeeze(1)

    def leave(self, rows_MD: torch.Tensor) -> torch.Tensor:
        """What the experts made of them sets out."""
        return rows_MD

    def home(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum [T, D] of each token's rows."""
        return combine(rows, self.position_A, self.assignment_M, self.top_k)


@dataclass
class _Arrivals:
    """What a rank receives of a part."""

    sent: list[int]
    received: list[int]
    position_N: torch.Tensor
    received_M: torch.Tensor
    sizes_L: torch.Tensor


class ExchangedPlan:
    """Experts are spread over the expert-parallel group, whose ranks exchange rows.

    Args:
        experts: each part's, [T, K].
        counts: each part's, [E].
        read_late: let a GPU's host go on until it needs the counts.
    """

    def __init__(
        self,
        experts: list[torch.Tensor],
        counts: list[torch.Tensor],
        group: dist.ProcessGroup | None,
        ranks: int,
        *,
        read_late: bool,
    ):
        self.group, self.top_k = group, experts[0].shape[1]
        self._counts = Counts(torch.stack(counts), group, ranks, read_late=read_late)
        self.departures = [sorted_positions(experts_TK, counts[0].numel()) for experts_TK in experts]

    @cached_property
    def arrivals(self) -> list[_Arrivals]:
        splits = self._counts.read()
        return [
            _Arrivals(sent, received, *received_positions(counts_RL, sum(received)))
            for (sent, received), counts_RL in zip(splits, self._counts.received_PRL, strict=True)
        ]

    def journeys(self) -> list[ExchangedJourney]:
        """One pass of the layer over its parts; each pass exchanges for itself."""
        return [ExchangedJourney(self, part) for part in range(len(self.departures))]


class Counts:
    """Exchange of how many rows go to and come from each rank and expert."""

    def __init__(self, counts_PE: torch.Tensor, group: dist.ProcessGroup | None, ranks: int, *, read_late: bool):
        sent_RPL = counts_PE.view(counts_PE.shape[0], ranks, -1).transpose(0, 1).contiguous()
        received_RPL = torch.empty_like(sent_RPL)
        deepspeed.comm.all_to_all_single(received_RPL, sent_RPL, group=group)
        self.received_PRL = received_RPL.transpose(0, 1)
        splits = torch.stack((sent_RPL.sum(dim=2), received_RPL.sum(dim=2))).permute(2, 0, 1)
        self._splits = splits.contiguous().to("cpu", non_blocking=read_late)  # [P, 2, R]; pinned where it is on its way
        self._copied = None
        if read_late and splits.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[list[list[int]]]:
        """Of each part the rows to each rank, and those from each rank."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._splits.tolist()


class ExchangedJourney:
    """`LocalJourney` by way of exchanges, each of which is under way until the next step."""

    def __init__(self, plan: ExchangedPlan, part: int):
        self._plan, self._part = plan, part

    def depart(self, x_TD: torch.Tensor, weights_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        where = self._plan.departures[self._part]
        rows, weights = dispatch(x_TD, *where, self._plan.top_k), dispatch(weights_TK.reshape(-1, 1), *where, 1)
        splits = self._here.sent, self._here.received
        self._rows, self._weights = (Exchange(self._plan.group, *splits, keep="rows") for _ in range(2))
        self._home = Exchange(self._plan.group, *splits[::-1], read_again=False)
        return self._rows.start(rows), self._weights.start(weights)

    @property
    def _here(self) -> _Arrivals:
        return self._plan.arrivals[self._part]

    @property
    def sizes_E(self) -> torch.Tensor:
        return self._here.sizes_L

    def arrive(self, rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        where = self._here.position_N, self._here.received_M
        return dispatch(self._rows.wait(rows), *where, 1), dispatch(self._weights.wait(weights), *where, 1).squeeze(1)

    def leave(self, rows_MD: torch.Tensor) -> torch.Tensor:
        return self._home.start(combine(rows_MD, self._here.position_N, self._here.received_M, 1))

    def home(self, rows: torch.Tensor) -> torch.Tensor:
        position_A, assignment_A = self._plan.departures[self._part]
        return combine(self._home.wait(rows), position_A, assignment_A, self._plan.top_k)
