"""Collectives of Python values and votes: small things that ranks tell each other, outside the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from recipe.base.errors import UserError, what_to_do

T = TypeVar("T")


class FirstRankFailed(RuntimeError):
    """Rank 0 has an error of its own, which it raises itself; the others can only say so."""


def any_rank(holds: bool) -> bool:
    vote = torch.tensor(float(holds), device="cuda" if torch.cuda.is_available() else "cpu")
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return vote.item() > 0


def all_ranks(holds: bool) -> bool:
    return not any_rank(not holds)


def from_first_rank(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on all ranks.

    Raises:
        UserError: on all ranks, an error of `make` that the user can act on.
        FirstRankFailed: on the other ranks, any other error of `make`; rank 0 raises that itself.
    """
    box: list[Any] = [None, None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            box[0] = make()
        except Exception as error:
            failure = error
            message = what_to_do(error)
            box[1:] = (message, None) if message else (None, f"rank 0 failed: {type(error).__name__}: {error}")
    dist.broadcast_object_list(box)
    if failure is not None and box[1] is None:
        raise failure
    if box[1] is not None:
        raise UserError(box[1]) from failure
    if box[2] is not None:
        raise FirstRankFailed(box[2])
    return box[0]


def gathered(value: T) -> list[T]:
    """Every rank's value, in rank order."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
