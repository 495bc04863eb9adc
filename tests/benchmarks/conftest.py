"""One run of `make gpu`'s small mode for all tests that look at what it has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_python


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the small run go to one of xdist's workers: each has fixtures of its own."""
    for item in items:
        if "small_run" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("small_run"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result's file of `python benchmarks/gpu.py --small`; its processes' logs lie beside it."""
    output = tmp_path_factory.mktemp("gpu_small")
    done = run_python("benchmarks/gpu.py", "--small", "--output", output, timeout=900)
    files = [file for file in output.glob("*.json") if not file.name.endswith(".calibration.json")]
    assert (done.returncode, len(files)) == (0, 1), done.stderr[-6000:]
    return files[0]


@pytest.fixture(scope="session")
def small_result(small_run: Path) -> dict[str, Any]:
    """The result of that run."""
    return json.loads(small_run.read_text(encoding="utf-8"))
