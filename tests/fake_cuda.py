"""CUDA tensors without memory: CUDA branches of our code run on a CPU build of torch, up to the kernels.

Each call is parsed against the installed torch's schemas, and shapes, types, strides and devices are checked by its own
rules for operators ("meta kernels"), so a wrong keyword or a layout that a GPU refuses fails. Values are not computed.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, META = 1, 14  # numbers of c10::DeviceType


@contextmanager
def device_guard() -> Iterator[None]:
    """Have torch switch to a CUDA device by doing nothing, as FakeTensorMode itself sees to where torch is built for CUDA.

    A CPU build has no guard for CUDA in its table (c10/core/impl/DeviceGuardImplInterface.h), and indexing asks for it: it
    gets the one of "meta", which does nothing either and which autograd's engine, should it start meanwhile, counts as no
    device. A build for CUDA has its own, and its FakeTensorMode one that does nothing where there is no GPU.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if guards[CUDA] is not None:
        yield
        return
    assert guards[META] is not None
    guards[CUDA] = guards[META]
    try:
        yield
    finally:
        guards[CUDA] = None


class _Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda() -> Iterator[set[Any]]:
    """While active, tensors are made without memory, on device "cuda" too; yields the operators that were called."""
    recorded = _Recorded()
    with device_guard(), FakeTensorMode(), recorded:
        yield recorded.operators


@torch.no_grad()
def backward(output: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
    """Gradients of the leaves, by the nodes that autograd's engine would call; the engine asks a build with CUDA for streams."""
    waits_for: Counter[Any] = Counter()  # edges into a node from nodes that are still to be called
    seen, stack = set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += [following for following, _ in node.next_functions if following is not None]
            waits_for.update(following for following, _ in node.next_functions if following is not None)
    given: dict[Any, dict[int, torch.Tensor]] = {output.grad_fn: {0: torch.ones_like(output)}}
    gradients: dict[torch.Tensor, torch.Tensor] = {}
    ready = [output.grad_fn]
    while ready:
        node = ready.pop()
        inputs = given.pop(node, {})
        if hasattr(node, "variable"):
            gradients[node.variable] = _as_the_engine_hands_it(inputs[0], node.variable)
            continue
        for (following, number), gradient in _called(node, inputs):
            if gradient is not None:
                to = given.setdefault(following, {})
                to[number] = to[number] + gradient if number in to else gradient
            waits_for[following] -= 1
            if not waits_for[following]:
                ready.append(following)
    return gradients


def _called(node: Any, inputs: dict[int, torch.Tensor]) -> list[tuple[Any, torch.Tensor | None]]:
    """A node's gradients with the edges that they go along."""
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    if not inputs:
        return [(edge, None) for edge in edges]
    metadata = node._input_metadata
    arguments = [_as_the_engine_hands_it(inputs.get(number), about) for number, about in enumerate(metadata)]
    if hasattr(node, "needs_input_grad"):  # a Function of Python's, which has an output for arguments of any kind
        outputs, needed = node.apply(*arguments), node.needs_input_grad
    else:
        outputs, needed = node(*arguments), tuple(following is not None for following, _ in node.next_functions)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return list(zip(edges, (output for output, need in zip(outputs, needed, strict=True) if need), strict=True))


def _as_the_engine_hands_it(gradient: Any, about: Any) -> Any:
    """Summed over what was broadcast, in the precision of the output that it belongs to; another shape raises."""
    return None if gradient is None else gradient.sum_to_size(about.shape).to(about.dtype)
