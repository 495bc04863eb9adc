"""Exchanges of an expert-parallel group that run beside what is computed between their start and their end.

`start` and `wait` are two autograd functions. The backward pass of a wait starts the exchange of gradients, that of the start
waits for it: autograd runs nodes in the reverse order of their making, so what ran beside the exchange forward has its
gradients computed beside it backward. Every rank of the group starts the same exchanges in the same order.

What is sent and received lives in the exchange until it is over: a communication stream reads and writes it.

Legend: N rows, D columns, R ranks of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.model.recompute import kept_result, recomputing
from recipe.model.routing.dispatch import nobody_reads


@dataclass
class _UnderWay:
    work: Any
    sent: torch.Tensor
    received: torch.Tensor


class Exchange:
    """One exchange of rows, and the one back of their gradients.

    Args:
        group: the ranks, in whose order rows stand.
        sent, received: rows to and from each rank.
        keep: name under which a recomputed layer keeps what it received, and is sent nothing again.
        read_again: whether a recomputed layer needs the rows again; if not, its second pass exchanges none.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        sent: list[int],
        received: list[int],
        *,
        keep: str | None = None,
        read_again: bool = True,
    ):
        self._group, self._sent, self._received = group, sent, received
        self._keep, self._read_again = keep, read_again
        self._rows = 0  # given to `start`
        self._there: _UnderWay | None = None
        self._back: _UnderWay | None = None

    def start(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Begin to send; the result is for `wait` alone. Rows beyond those that are sent stay."""
        self._rows = rows_ND.shape[0]
        return _Start.apply(rows_ND, self)

    def wait(self, arriving_ND: torch.Tensor) -> torch.Tensor:
        """The rows received."""
        return _Wait.apply(arriving_ND, self)

    def send(self, rows_ND: torch.Tensor) -> torch.Tensor:
        rows, columns = sum(self._received), rows_ND.shape[1]
        if recomputing() and not self._read_again:
            return nobody_reads(rows_ND, rows, columns)

        def send() -> torch.Tensor:
            received = rows_ND.new_empty(rows, columns)
            sent = rows_ND[: sum(self._sent)].contiguous()
            self._there = _UnderWay(self._started(received, sent, self._received, self._sent), sent, received)
            return received

        return send() if self._keep is None else kept_result(self._keep, send)

    def end(self) -> None:
        if self._there is not None:  # what was kept is not sent again
            self._there.work.wait()
        self._there = None

    def send_back(self, grad_ND: torch.Tensor) -> None:
        # The gradient of rows that were not sent is nobody's.
        received, sent = grad_ND.new_empty(self._rows, grad_ND.shape[1]), grad_ND.contiguous()
        work = self._started(received[: sum(self._sent)], sent, self._sent, self._received)
        self._back = _UnderWay(work, sent, received)

    def end_back(self) -> torch.Tensor:
        assert self._back is not None
        self._back.work.wait()
        received, self._back = self._back.received, None
        return received

    def _started(self, received: torch.Tensor, sent: torch.Tensor, here: list[int], there: list[int]) -> Any:
        return deepspeed.comm.all_to_all_single(received, sent, here, there, group=self._group, async_op=True)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return exchange.send(rows_ND)

    @staticmethod
    def backward(ctx, _: torch.Tensor):
        return ctx.exchange.end_back(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, arriving_ND: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        exchange.end()
        return arriving_ND.view_as(arriving_ND)

    @staticmethod
    def backward(ctx, grad_ND: torch.Tensor):
        ctx.exchange.send_back(grad_ND)
        return grad_ND, None  # of the right shape; what `_Start` returns is in the exchange
