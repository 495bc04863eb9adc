"""Functions of tensors that a GPU should run as one kernel: written plainly, and compiled where a run asks for it.

Eager, each operation in them reads its operands from memory and writes its result there; compiled by
`torch.compile`, the whole function reads and writes once. They hold no parameter and start no collective, so
DeepSpeed's hooks around modules are never inside one: ZeRO-3 and AutoEP work as they do without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Shapes that a function is compiled for: its call sites, with and without gradient. More are a mistake, and raise.
MOST_SHAPES = 32

_fusing = False


def fuse(on: bool) -> None:
    """Compile the functions marked `fusible` from now on, or call them as they are written."""
    global _fusing
    if on:
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # not eager in silence
    _fusing = on


@contextmanager
def fused(on: bool = True) -> Iterator[None]:
    """`fuse` for a while."""
    before = _fusing
    fuse(on)
    try:
        yield
    finally:
        fuse(before)


def fusible(*, rows_vary: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function of tensors as one to be compiled.

    Args:
        rows_vary: whether the sizes differ from call to call, as the rows that experts get do; such a
            function is compiled for sizes that it does not know, the others for each set of sizes.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = functools.cache(
            lambda: torch.compile(function, dynamic=None if rows_vary else False, fullgraph=True)
        )

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs) if _fusing else function(*args, **kwargs)

        return call

    return decorate
