"""Counting the collectives that a process issues, whoever issues them.

Every collective of torch.distributed passes the dispatcher as an operator of the namespace `c10d`; a dispatch mode
sees them all: DeepSpeed's, AutoEP's and ours. Bytes are those of `recipe.planner.communication`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from recipe.engine.deepspeed_private import TorchDispatchMode

# operator -> its name, and which of its tensors (in the order of its arguments) are counted
_COUNTED = {
    "_allgather_base_": ("all_gather", 0),  # output, input
    "_reduce_scatter_base_": ("reduce_scatter", 1),  # output, input
    "allreduce_": ("all_reduce", None),
    "alltoall_base_": ("all_to_all", 1),  # output, input
    "broadcast_": ("broadcast", None),
    "allgather_": ("all_gather", None),
    "reduce_": ("reduce", None),
    "barrier": ("barrier", 0),
}
_DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class Kind:
    """Collectives that are counted together."""

    op: str
    ranks: int
    dtype: str


@dataclass
class CollectiveCounter(TorchDispatchMode):
    """While active, adds up calls and bytes of every collective by kind."""

    calls: Counter[Kind] = field(default_factory=Counter)
    bytes: Counter[Kind] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self._count(func.__name__.split(".")[0], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in _COUNTED:
            raise NotImplementedError(f"collective {name} has no rule to count its bytes")
        op, place = _COUNTED[name]
        tensors = list(_tensors(args))
        counted = tensors if place is None else tensors[place : place + 1]
        kind = Kind(op, _ranks(args), _dtype(counted))
        self.calls[kind] += 1
        self.bytes[kind] += sum(t.numel() * t.element_size() for t in counted)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _ranks(args: tuple[Any, ...]) -> int:
    """Size of the process group among an operator's arguments."""
    for value in args:
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value).size()
            except RuntimeError:  # another kind of object, such as the reduction
                continue
    raise AssertionError("a collective without a process group")


def _dtype(tensors: list[torch.Tensor]) -> str:
    dtype = tensors[0].dtype
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))
