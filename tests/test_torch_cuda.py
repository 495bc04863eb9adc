"""Every use of torch.cuda in the project, against the installed torch: it exists, and takes the arguments that it is given.

The uses are read from the source, so a new one is checked without being listed here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

SOURCES = {
    path: source
    for folder in ("recipe", "launch", "benchmarks", "tests/gpu")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "torch.cuda." in (source := path.read_text(encoding="utf-8"))
}
# What functions of torch.cuda return, where the project uses something of it.
RETURNED = {
    "torch.cuda.current_stream": torch.cuda.Stream,
    "torch.cuda.default_stream": torch.cuda.Stream,
    "torch.cuda.Stream": torch.cuda.Stream,
    "torch.cuda.Event": torch.cuda.Event,
}
# Modules and classes of C++ that a CPU build has not. cudart's: torch/csrc/cuda/shared/cudart.cpp. The others: torch's stubs.
CUDART = {"cudaHostRegister": 3, "cudaHostUnregister": 1, "cudaProfilerStart": 0, "cudaProfilerStop": 0}
PROPERTIES = "torch.cuda.get_device_properties"


def chain(node: ast.AST) -> str:
    """`torch.cuda.Event` of the expression that it is, also where it is called or only asked for; else nothing."""
    if isinstance(node, ast.Call):
        node = node.func
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def member(name: str) -> Any:
    """What torch has by such a name, or None."""
    return reduce(lambda owner, part: getattr(owner, part, None), name.split(".")[1:], torch)


def problem(function: Callable[..., Any], call: ast.Call, *, bound: int = 0) -> str | None:
    """Why a call's arguments do not fit; `bound` more stand before them."""
    if any(isinstance(argument, ast.Starred) for argument in call.args) or any(k.arg is None for k in call.keywords):
        return None
    try:
        signature = inspect.signature(function)
    except ValueError:  # of C++, without a signature
        return None
    try:
        signature.bind(*[None] * (bound + len(call.args)), **{str(k.arg): None for k in call.keywords})
    except TypeError as error:
        return f"{ast.unparse(call)}: {error}"
    return None


@cache
def fields_of_properties() -> set[str]:
    stubs = (Path(torch.__file__).parent / "_C" / "__init__.pyi").read_text(encoding="utf-8")
    (body,) = re.findall(r"^class _CudaDeviceProperties:\n((?:    .*\n)+)", stubs, re.MULTILINE)
    return set(re.findall(r"^    (\w+):", body, re.MULTILINE))


def problems_of(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    yield from (text for node in nodes if isinstance(node, ast.Attribute) for text in of_attribute(node))
    yield from (text for node in nodes if isinstance(node, ast.Call) for text in of_call(node))
    # Events and streams in variables: any method of such a name, where the file has any.
    made = {RETURNED[name] for node in nodes if (name := chain(node)) in RETURNED}
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not chain(node).startswith("torch."):
            methods = [method for kind in made if (method := vars(kind).get(node.func.attr))]
            found = [problem(method, node, bound=1) for method in methods]
            if found and all(found):
                yield str(found[0])


def of_attribute(node: ast.Attribute) -> Iterator[str]:
    name = chain(node)
    if name.startswith("torch.cuda.") and member(name) is None:
        yield f"torch {torch.__version__} has no {name}"
    if isinstance(node.value, ast.Call) and (maker := chain(node.value)).startswith("torch.cuda."):
        if maker in RETURNED and not hasattr(RETURNED[maker], node.attr):
            yield f"{maker}() has no {node.attr}"
        if maker == PROPERTIES and node.attr not in fields_of_properties():
            yield f"{maker}() has no {node.attr}"
        if maker == "torch.cuda.cudart" and node.attr not in CUDART:
            yield f"{node.attr} is not known to be one of torch.cuda.cudart()"


def of_call(node: ast.Call) -> Iterator[str]:
    name, text = chain(node), None
    if name.startswith("torch.cuda.") and (function := member(name)) is not None:
        text = problem(function, node)
    elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
        maker, method = chain(node.func.value), node.func.attr
        if maker in RETURNED and hasattr(RETURNED[maker], method):
            text = problem(getattr(RETURNED[maker], method), node, bound=1)
        elif maker == "torch.cuda.cudart" and len(node.args) != CUDART.get(method, len(node.args)):
            text = f"{ast.unparse(node)}: {method} takes {CUDART[method]} arguments"
    if text:
        yield text


def test_torch_has_what_the_project_uses_of_its_cuda():
    assert sum(source.count("torch.cuda.") for source in SOURCES.values()) > 50
    found = {path: list(problems_of(source)) for path, source in SOURCES.items()}
    assert {str(path): problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.memory_reserve()",
        "torch.cuda.memory.empty()",
        "torch.cuda.mem_get_info(gpu=0)",
        "torch.cuda.set_sync_debug_mode()",
        "torch.cuda.Event(timing=True)",
        "torch.cuda.current_stream().wait_event()",
        "torch.cuda.current_stream().wait_for(event)",
        "torch.cuda.cudart().cudaHostRegister(address, 8)",
        "torch.cuda.cudart().cudaHostPin(address, 8, 0)",
        "torch.cuda.get_device_properties(0).memory",
        "event = torch.cuda.Event()\nevent.record(stream, 1)",
        "events = [torch.cuda.Event(enable_timing=True)]\nevents[0].elapsed_time()",
    ],
)
def test_a_wrong_use_would_be_noticed(line):
    assert list(problems_of(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.mem_get_info(0)",
        "torch.cuda.memory.empty_cache()",
        "event = torch.cuda.Event(enable_timing=True)\nevent.record()\nevent.record(stream)",
        "stream = torch.cuda.Stream(priority=-1)\nstream.wait_stream(torch.cuda.current_stream())",
        "torch.cuda.get_device_properties(0).total_memory",
    ],
)
def test_a_right_use_is_no_problem(line):
    assert list(problems_of(line)) == []
