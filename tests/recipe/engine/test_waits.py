"""What a training step asks of the device before it goes on: nothing, where the routing lets it."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ROOT, launch

pytestmark = pytest.mark.distributed

DROP = {"mode": "drop", "factor": 1.0, "gives_way": "latest_position"}
CASES = {
    1: {
        "drop on one rank": {"ep": 1, "stage": 1, "routing": {"capacity": DROP}},
        "rerouting on one rank": {"ep": 1, "stage": 1, "routing": {"capacity": {"mode": "reroute", "factor": 1.0}}},
    },
    8: {
        "dropless over ranks": {"ep": 4, "stage": 3, "routing": {}, "recompute": "non_reentrant"},
        "quantiles": {"ep": 4, "stage": 3, "routing": {"bias_update": "quantile"}},
        "global balance": {"ep": 4, "stage": 3, "routing": {"aux_loss_scope": "global_batch", "jitter": 0.1}},
    },
}


def waits(ranks: int) -> dict[str, list[str]]:
    """Lines of the recipe that wait, by case."""
    cases = CASES[ranks]
    words = ranks, json.dumps(list(cases.values()))
    done = launch(1, "tests/recipe/engine/waits_worker.py", *words, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    askers = json.loads(done.stdout.splitlines()[-1])
    return {name: [a for a in lines if a.startswith("recipe/")] for name, lines in zip(cases, askers, strict=True)}


def test_no_line_of_ours_waits_for_the_device_but_those_that_reroute():
    of_case = waits(1)
    assert any("capacity.py" in asker for asker in of_case.pop("rerouting on one rank"))
    assert of_case == {"drop on one rank": []}


def test_no_line_of_ours_waits_for_the_device_over_ranks():
    assert waits(8) == {"dropless over ranks": [], "quantiles": [], "global balance": []}
