"""What a training step asks of the device before it goes on: nothing, where the routing lets it."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_python


def waits(ranks: int, ep: int, stage: int, *, recompute: str = "none", **routing) -> list[str]:
    done = run_python("-m", "tests.recipe.engine.waits_worker", ranks, ep, stage, json.dumps(routing), recompute)
    assert done.returncode == 0, done.stderr[-3000:]
    return [asker for asker in json.loads(done.stdout.splitlines()[-1]) if asker.startswith("recipe/")]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "ep", "stage", "options"),
    [
        (1, 1, 1, {"capacity": {"mode": "drop", "factor": 1.0, "gives_way": "latest_position"}}),
        (8, 4, 3, {"recompute": "non_reentrant"}),
        (8, 4, 3, {"aux_loss_scope": "global_batch", "jitter": 0.1}),
    ],
    ids=["drop on one rank", "dropless over ranks", "global balance"],
)
def test_no_line_of_ours_waits_for_the_device(ranks, ep, stage, options):
    assert waits(ranks, ep, stage, **options) == []


@pytest.mark.distributed
def test_rerouting_does_and_is_noticed():
    assert any("capacity.py" in asker for asker in waits(1, 1, 1, capacity={"mode": "reroute", "factor": 1.0}))
