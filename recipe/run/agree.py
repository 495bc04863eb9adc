"""Small things that ranks tell each other, outside the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from recipe.base.errors import UserError

T = TypeVar("T")


def any_rank(mine: bool) -> bool:
    vote = torch.tensor(float(mine), device="cuda" if torch.cuda.is_available() else "cpu")
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return vote.item() > 0


def all_ranks(mine: bool) -> bool:
    return not any_rank(not mine)


def from_first_rank(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0, on all ranks; a `UserError` that it raises there is raised on all."""
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = make()
        except UserError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]


def gathered(mine: T) -> list[T]:
    """Every rank's value, in rank order."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, mine)
    return values
