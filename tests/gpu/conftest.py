"""Checks that a GPU makes of this recipe: their device, one process group for all, and a line of a report for each.

`benchmarks/gpu.py` starts them; on a machine without a GPU its small mode runs the same checks on CPU ranks, in fp32 and small.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

CRASHED = 70  # exit code of a process whose GPU takes no more work; the checks that are left need another one
# torch reads it once, at a process's first matmul on a GPU, and refuses deterministic ones ever after without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# In the order of their worth, should time run out; other files come behind.
FIRST = (
    "test_model",
    "test_routing",
    "test_loss",
    "test_engine",
    "test_step",
    "test_snapshot",
    "test_memory",
    "test_export",
)
RAN_IN = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, help="file of JSON lines: a check that starts, and what came of it")


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.environ.get("DS_ACCELERATOR") == "cuda" and not torch.cuda.is_available():  # as benchmarks/gpu.py starts it
        pytest.exit("a GPU is to be checked and torch sees none", returncode=3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
    if len(ours) == len(items):
        items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


def pytest_collection_finish(session: pytest.Session) -> None:
    tell(session.config, checks=[item.nodeid for item in session.items])


def tell(config: pytest.Config, **line: Any) -> None:
    path = config.getoption("--report")
    if path is not None:
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Of a number of torch or numpy Python's; of all else what it prints."""
    with suppress(AttributeError, TypeError, ValueError, RuntimeError):
        return value.item()
    return str(value)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    """A module that is left out or cannot be imported is a line too: its checks have none."""
    report = yield
    if report.outcome != "passed" and Path(__file__).parent in collector.path.parents:
        tell(collector.config, check=collector.nodeid, what=f"all of {collector.nodeid}", seconds=0.0, measured={},
             **outcome_of(report, None))  # fmt: skip
    return report


def outcome_of(report: Any, error: BaseException | None) -> dict[str, Any]:
    """What came of a check, and why where it has not passed."""
    if report.outcome == "skipped":
        text = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return {"outcome": "not possible", "why": text.removeprefix("Skipped: ")}
    if report.outcome == "passed":
        return {"outcome": "passed", "why": None}
    crash = getattr(report.longrepr, "reprcrash", None)
    where = f" ({Path(crash.path).name}:{crash.lineno})" if crash is not None else ""
    text = (
        str(report.longrepr).strip().splitlines()[-1]
        if error is None
        else f"{type(error).__name__}: {str(error).strip()}"
    )
    return {"outcome": "failed", "why": text[:2000] + where}


def what_of(item: pytest.Item) -> str:
    """The first line of a check's docstring, and of which of its cases it is."""
    first = (item.obj.__doc__ or item.name).strip().splitlines()[0].removesuffix(".")  # type: ignore[attr-defined]
    case = getattr(item, "callspec", None)
    return f"{first} [{case.id}]" if case is not None else first


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    tell(item.config, check=item.nodeid, what=what_of(item), outcome="started")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    ended = report.when == "call" or report.outcome != "passed"  # a setup or teardown speaks only where it goes wrong
    if ended:
        tell(item.config, check=item.nodeid, what=what_of(item), seconds=round(report.duration, 2),
             measured=item.stash.get(RAN_IN, {}), **outcome_of(report, call.excinfo and call.excinfo.value))  # fmt: skip
        if report.outcome == "failed":  # into the log at once, since pytest's own summary may not come
            print(f"\n{item.nodeid}\n{report.longreprtext}", flush=True)
        if report.outcome == "failed" and torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(CRASHED)
    return report


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a check found, for the report: numbers and short strings by name."""
    return request.node.stash.setdefault(RAN_IN, {})


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the CPU that stands in for it."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(scope="session")
def small(device: torch.device) -> bool:
    """Whether sizes must be those that a CPU does in seconds."""
    return device.type == "cpu"


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A group of this one process, NCCL's on a GPU, as a launch makes it; all engines of these checks live in it."""
    from launch.cluster.hosts import free_port
    from recipe.engine.session import session

    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_SIZE": 1, "CROSS_RANK": 0, "CROSS_SIZE": 1,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
    # What is imported stays: collections, of which each engine needs some, look at the rest alone.
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, str(value))
        with session():
            yield


@pytest.fixture(autouse=True)
def _leave_the_gpu_empty(device: torch.device) -> Iterator[None]:
    yield
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
