"""DeepSpeed's AutoTP folded with AutoEP under our routers: what docs/design.md says of it is so."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT, launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def losses(tmp_path, *, tp: int, ep: int, stage: int) -> list[float]:
    output = tmp_path / f"{tp}_{ep}_{stage}.json"
    worker = ROOT / "tests/recipe/engine/tensor_worker.py"
    done = launch(4, worker, tp, ep, stage, output, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


def test_two_tensor_parallel_ranks_train_as_one(tmp_path):
    plain = losses(tmp_path, tp=1, ep=2, stage=3)
    assert plain[2] < plain[0] - 0.1
    assert losses(tmp_path, tp=2, ep=4, stage=3) == pytest.approx(plain, rel=1e-5)
    assert losses(tmp_path, tp=2, ep=2, stage=1) == pytest.approx(plain, rel=1e-5)
