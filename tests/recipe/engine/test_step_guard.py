"""What a step's verdict is, and what is remembered of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipe.base.settings import Numerics, Spikes
from recipe.engine import step_guard
from recipe.engine.step_guard import Rewind, StepGuard, Unsound

WINDOW = 8


class Updates:
    """An optimizer that counts its updates."""

    def __init__(self):
        self.count = 0

    def step(self) -> None:
        self.count += 1


@pytest.fixture
def alone(monkeypatch):
    """One rank: the step's exchange gives back what it was given."""
    monkeypatch.setattr(step_guard.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(step_guard.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(step_guard.dist, "get_rank", lambda: 0)


class Steps:
    """A guard over an optimizer, fed by hand."""

    def __init__(self, state: dict[str, Any] | None = None, **numerics: Any):
        self.updates, self.number = Updates(), 0
        inner = SimpleNamespace(optimizer=self.updates, _global_grad_norm=1.0)
        engine: Any = SimpleNamespace(optimizer=inner, device=torch.device("cpu"))
        settings = Numerics(**{"spikes": Spikes(window=WINDOW, sustained=2), **numerics})
        self.guard = StepGuard(engine, settings, state or {}, votes=dict, before_update=lambda: None)

    def take(self, loss: float, targets: int = 8) -> list[dict[str, Any]]:
        self.number += 1
        self.guard.offer(torch.tensor(loss), targets)
        self.updates.step()
        return self.guard.record(self.number, rewinds=0)


def test_a_step_without_a_token_that_has_a_loss_changes_nothing(alone):
    steps = Steps()
    steps.take(2.0)
    (event,) = steps.take(0.0, targets=0)
    assert (event["kind"], event["message"]) == ("empty", "step skipped: no token of it has a loss")
    assert steps.updates.count == 1
    assert steps.guard.state["losses"] == [2.0]
    assert steps.guard.last_update == 1


def test_the_last_update_before_steps_that_are_not_finite_is_known(alone):
    steps = Steps(max_nonfinite_in_a_row=2)
    steps.take(2.0)
    steps.take(math.nan)
    assert steps.guard.in_doubt
    steps.take(0.0, targets=0)  # shows nothing
    assert steps.guard.in_doubt
    with pytest.raises(Unsound, match="2 steps in a row up to 4 were not finite"):
        steps.take(math.inf)
    assert steps.guard.last_update == 1
    resumed = Steps(steps.guard.state, max_nonfinite_in_a_row=9)
    assert resumed.guard.last_update == 1
    resumed.take(2.0)
    assert not resumed.guard.in_doubt


def test_the_history_is_of_the_last_steps_that_were_applied(alone):
    steps = Steps()
    for number in range(3 * WINDOW):
        steps.take(2.0 + 0.001 * (number % 5))
    before = list(steps.guard.state["losses"])
    assert len(before) == WINDOW
    (event,) = steps.take(50.0)
    assert event["kind"] == "spike"
    assert steps.guard.state["losses"] == before
    with pytest.raises(Rewind) as rewind:
        steps.take(50.0)
    assert rewind.value.before_step == 3 * WINDOW + 1


def test_steps_that_are_skipped_for_one_reason_or_another_in_turn_reach_a_limit(alone):
    steps = Steps(max_nonfinite_in_a_row=3, spikes=Spikes(window=WINDOW, sustained=9))
    for _ in range(WINDOW):
        steps.take(2.0)

    def in_turn() -> None:
        for _ in range(9):
            steps.take(math.nan)
            steps.take(1e20)

    with pytest.raises(Unsound, match="3 steps in a row up to 13 were not finite"):
        in_turn()


def test_a_spike_proves_nothing(alone):
    steps = Steps()
    for _ in range(WINDOW):
        steps.take(2.0)
    assert (steps.guard.verdict().proof, steps.guard.in_doubt) == (True, False)
    steps.take(1e20)
    assert (steps.guard.verdict().proof, steps.guard.in_doubt) == (False, True)
    steps.take(0.0, targets=0)
    assert (steps.guard.verdict().proof, steps.guard.in_doubt) == (None, True)
    steps.take(2.0)
    assert (steps.guard.verdict().proof, steps.guard.in_doubt) == (True, False)
