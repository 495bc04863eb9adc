"""What a recomputed layer keeps from its first pass, and what it leaves out in its second.

A layer marks the calls whose results may be kept by the names of `recipe/planner/kept.py`. In the first pass the results of
the names that the layer keeps are stored; in the second, which the backward pass starts, they are taken instead of being
computed. torch's own selective contexts count every operation, and ZeRO-3 gathers other parameters in the second pass than
in the first; here only marked calls are looked at.

Results are stored below autograd, detached, so that the graph of the second pass is that of the first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")

# What every recomputed MoE layer keeps: it is small, while its exchange and the host's wait for it are not.
ROUTING_PLAN = "routing plan"
EVERYTHING = "everything"  # the planner's name for a layer that is not recomputed
# Operators, by schema, whose results a marked call of a library keeps. What else runs there, ZeRO-3's gathers above all, does.
KEPT_OPERATORS = {
    "aten::mm", "aten::addmm",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward", "flash_attn::_flash_attn_varlen_forward",
}  # fmt: skip


class _Store:
    """Results of one layer and micro-batch, by name in the order in which they were computed."""

    def __init__(self, names: frozenset[str]):
        self.names = names
        self.results: dict[str, deque[Any]] = {}

    def add(self, name: str, result: Any) -> None:
        self.results.setdefault(name, deque()).append(_detached(result))


def _detached(result: Any) -> Any:
    if isinstance(result, tuple):
        items = map(_detached, result)
        return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
    return result.detach() if isinstance(result, torch.Tensor) else result


class _Pass:
    """A context: one run of a layer, the first or again in the backward pass."""

    def __init__(self, store: _Store, *, again: bool):
        self.store, self.again = store, again
        self._outer: _Pass | None = None

    def __enter__(self) -> None:
        self._outer, _thread.running = _running(), self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        _thread.running, self._outer = self._outer, None
        if self.again or error is not None:  # no other pass comes: an error of the first may live on with its frames
            self.store.results.clear()

    def keeps(self, name: str) -> bool:
        """Whether a call of this name is to be stored, or has been and is still there to be taken.

        A second backward pass through the same graph finds nothing, and computes.
        """
        return bool(self.store.results.get(name)) if self.again else name in self.store.names

    def result(self, name: str, compute: Callable[[], Result]) -> Result:
        if self.again:
            return self.store.results[name].popleft()
        result = compute()
        self.store.add(name, result)
        return result


_thread = threading.local()  # a backward pass of a GPU runs in a thread of autograd's


def _running() -> _Pass | None:
    return getattr(_thread, "running", None)


def contexts(names: Collection[str]) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """For `context_fn` of torch.utils.checkpoint: contexts of the first and the second pass of a layer that keeps `names`.

    The routing plan is always among them.
    """
    kept_names = frozenset((*names, ROUTING_PLAN))

    def both() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        store = _Store(kept_names)
        return _Pass(store, again=False), _Pass(store, again=True)

    return both


def recomputing() -> bool:
    """Whether a layer runs for its second time, in which only what gradients need is read."""
    running = _running()
    return running is not None and running.again


def kept_result(name: str, compute: Callable[[], Result]) -> Result:
    """What `compute` returns, or in the second pass of a layer that keeps `name` what it returned in the first.

    For the forward of an autograd function, whose tensors have no graph.
    """
    running = _running()
    return running.result(name, compute) if running is not None and running.keeps(name) else compute()


_AS_IT_IS: AbstractContextManager[None] = nullcontext()


def kept(name: str) -> AbstractContextManager[Any]:
    """Around a call of torch or a library: its matmuls and attention kernels are kept under `name`.

    No compiled function may be called inside.
    """
    running = _running()
    return _Keep(name, running) if running is not None and running.keeps(name) else _AS_IT_IS


def unread() -> AbstractContextManager[Any]:
    """Around a call whose result nothing reads in the second pass: its matmuls are not run again."""
    return _Skip() if recomputing() else _AS_IT_IS


class _Keep(TorchDispatchMode):
    def __init__(self, name: str, running: _Pass):
        super().__init__()
        self._name, self._running = name, running
        self._taken: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in KEPT_OPERATORS and self._running.keeps(self._name):
            result = self._running.result(self._name, lambda: func(*args, **(kwargs or {})))
            if self._running.again and isinstance(result, torch.Tensor):
                self._taken.append(result)
            return result
        # ZeRO-3's linear layers add a bias in place, after the matmul: what was stored has it.
        if self._taken and _in_place(func) and self._has_taken(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))

    def _has_taken(self, changed: Any) -> bool:
        if not isinstance(changed, torch.Tensor):  # a list, of which a result is no part
            return False
        address = changed.untyped_storage().data_ptr()
        return any(address == taken.untyped_storage().data_ptr() for taken in self._taken)


def _in_place(func: Any) -> bool:
    """Whether an operator changes its first argument; with `out=` it changes its last."""
    return func._schema.is_mutable and func._schema.name.endswith("_")


class _Skip(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::mm":
            left, right = args
            return left.new_empty(left.shape[0], right.shape[1])
        return func(*args, **(kwargs or {}))
