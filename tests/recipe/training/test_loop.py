"""The loop's own ends; what it trains is test_training.py's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recipe.base.errors import UserError
from recipe.base.settings import Logging
from recipe.run.job import ProfiledSteps
from recipe.training import loop
from recipe.training.loop import Training


class Stand:
    """In for whatever is not looked at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stand()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Stand()


@pytest.fixture
def training(monkeypatch, tmp_path):
    """A run of four steps on rank 0, and what of it is open."""
    opened: list[str] = []
    given: list[tuple[Any, ...]] = []

    def closing(name: str) -> Any:
        class Closing(Stand):
            def __init__(self, *args: Any) -> None:
                opened.append(name)
                given.append(args)

            def close(self) -> None:
                opened.remove(name)

        return Closing

    for name in ("control_routing", "Mitigator", "Throughput", "StopRequest", "Prefetcher"):
        monkeypatch.setattr(loop, name, Stand())
    monkeypatch.setattr(loop, "StepGuard", lambda *_, **__: SimpleNamespace(in_doubt=False))
    monkeypatch.setattr(loop.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(loop, "MetricsWriter", closing("writer"))
    monkeypatch.setattr(loop, "StepProfiler", closing("profiler"))
    run = SimpleNamespace(
        logging=Logging(prometheus_port=9100, prometheus_host="10.0.0.1"), routing=None, numerics=None, compute=None,
        data=SimpleNamespace(seq_length=8), seed=0,
    )  # fmt: skip
    launch = SimpleNamespace(run=run, shape=None, order=Stand(), last_step=lambda step, tokens: 4)
    state = SimpleNamespace(step=0, sequences=0, tokens=0, mitigations={}, guard={})
    store = SimpleNamespace(
        before_update=None, finish=lambda: True, take_events=list, check_saved=lambda step: None, unmark=lambda *_: None
    )
    folder = SimpleNamespace(path=tmp_path, stop_request=tmp_path / "stop")

    def begin(last: int = 3) -> Training:
        profiled = ProfiledSteps(2, last, lambda path, steps: "")
        return Training(Stand(), launch, store, state, folder, Stand(), profiled=profiled)  # type: ignore[arg-type]

    return SimpleNamespace(begin=begin, opened=opened, given=given, state=state)


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA"), UserError("gone"), KeyboardInterrupt(), SystemExit(2)])
def test_writers_are_closed_on_every_way_out(training, monkeypatch, error):
    begun = training.begin()
    assert training.opened == ["writer", "profiler"]

    def step() -> bool:
        training.state.step += 1
        if error is not None and training.state.step == 2:
            raise error
        return False

    monkeypatch.setattr(begun, "_step", step)
    if error is None:
        assert begun.run() is True
    else:
        with pytest.raises(type(error)):
            begun.run()
    assert training.opened == []


def test_metrics_are_served_where_the_run_says(training):
    training.begin()
    assert training.given[0][-2:] == (9100, "10.0.0.1")


def test_nothing_is_opened_for_steps_that_cannot_be_profiled(training):
    with pytest.raises(UserError, match="--profile goes to step 5"):
        training.begin(last=5)
    assert training.opened == []
