"""The loop's order, its cadences and its ends, with a step that computes nothing; what it trains is test_training.py's."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipe.base.errors import UserError
from recipe.base.run_config.learning_rate import learning_rate
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.run_config.routing import Routing
from recipe.base.run_config.schedule import Schedule
from recipe.base.settings import Checkpoint, Evaluation, Logging, Numerics, Spikes, Watch
from recipe.engine import step_guard
from recipe.engine.step_guard import Unsound
from recipe.planner.kept import NOTHING
from recipe.run.job import ProfiledSteps
from recipe.safety.corruption import Corruption
from recipe.telemetry.phases import NAMES
from recipe.training import loop
from recipe.training.loop import LAST_BEFORE_DECAY, Outcome, Training

SEQUENCES, SEQ = 2, 8  # of a step over all ranks
TOKENS = SEQUENCES * SEQ
RANKS = 2


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


class Optimizer:
    def __init__(self) -> None:
        self.param_groups: list[dict[str, float]] = [{"lr": math.nan}, {"lr": math.nan}]

    def step(self) -> None:
        pass


class FakeRun:
    """A run on rank 0 of `RANKS` whose steps, saves and reports are only noted.

    Args:
        losses: of the steps that are not 2.0.
        asked_after: the step in which some rank asks for a stop.
        corrupt_at: the step whose corruption check fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Any, steps: int = 4, **given: Any):
        self.losses: dict[int, float] = given.pop("losses", {})
        self.asked_after: int | None = given.pop("asked_after", None)
        self.corrupt_at: int | None = given.pop("corrupt_at", None)
        self.done: list[tuple[Any, ...]] = []  # what followed each step, in order
        self.metrics: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.counted: list[int] = []
        self.phases: list[tuple[int, str]] = []  # as they are reported, with the steps done before
        self.updates_bias: list[bool] = []
        self.read: list[tuple[int, int]] = []  # position in sequences, and the one read ahead
        self.rates: list[list[float]] = []
        self.opened: list[str] = []
        self.arguments: dict[str, tuple[Any, ...]] = {}
        self.path = path
        schedule = {"total_tokens": steps * TOKENS, "peak_lr": 1.0, "min_lr": 0.1, "warmup_tokens": 2 * TOKENS}
        sections: dict[str, Any] = {
            "schedule": Schedule(**{**schedule, **given.pop("schedule", {})}),
            "routing": Routing(**given.pop("routing", {})),
            "numerics": Numerics(**given.pop("numerics", {"spikes": None})),
            "watch": Watch(**{"stragglers_every_steps": None, **given.pop("watch", {})}),
            "evaluation": Evaluation(**given.pop("evaluation", {})),
            "checkpoint": Checkpoint(**{"every_steps": 1000, **given.pop("checkpoint", {})}),
            "logging": Logging(**{"every_steps": 1, **given.pop("logging", {})}),
        }
        data = SimpleNamespace(seq_length=SEQ, max_damaged_share=0.0, document_attention=False)
        run: Any = SimpleNamespace(**sections, data=data, compute=None, seed=0)
        ds: Any = SimpleNamespace(train_batch_size=SEQUENCES, bf16_enabled=False)
        phase = ResolvedPhase(0, "run", None, 0, steps * TOKENS, run, None, ds, {})  # type: ignore[arg-type]
        ends = given.pop("ends", "finished")
        self.job: Any = SimpleNamespace(
            config=SimpleNamespace(phases=[]), phases=(phase,), phase=phase, number=0, read=(), run=run, ds=ds, kept=NOTHING,
            order=SimpleNamespace(names=[]),
            data=SimpleNamespace(order=SimpleNamespace(tokens_read=lambda *_: {}, epochs=lambda *_: {})),
            tokenizer={"eod_id": 0}, shape=None, held_out=["en"], tokens_per_step=TOKENS,
            is_last_phase=ends == "finished",
        )  # fmt: skip
        assert not given
        self.state: Any = loop.TrainState()
        self._stand_in(monkeypatch)

    def _stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "control_routing", Stand())
        for module in (loop, step_guard):
            monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
            monkeypatch.setattr(module.dist, "get_world_size", lambda: RANKS)
        monkeypatch.setattr(step_guard.dist, "all_reduce", lambda tensor: tensor.mul_(RANKS))
        monkeypatch.setattr(loop, "Prefetcher", lambda _: SimpleNamespace(take=self._take))
        mitigator = SimpleNamespace(state={}, update=lambda *_: [])
        monkeypatch.setattr(loop, "Mitigator", lambda *_: mitigator)
        phases = SimpleNamespace(enter=lambda phase: self.phases.append((self.state.step, NAMES[phase])))
        throughput = SimpleNamespace(phases=phases, count=self.counted.append, take=dict)
        monkeypatch.setattr(loop, "Throughput", lambda *_: throughput)
        monkeypatch.setattr(loop, "StepProfiler", self._closing("profiler"))
        monkeypatch.setattr(loop, "routing_metrics", lambda *_: {})
        monkeypatch.setattr(loop, "run_step", self._run_step)
        monkeypatch.setattr(loop, "evaluate_engine", self._evaluate)
        monkeypatch.setattr(loop, "check_for_corruption", self._check_for_corruption)
        monkeypatch.setattr(loop, "compare", self._compare)

    def _closing(self, name: str) -> Any:
        run = self

        class Closing(Stand):
            def __init__(self, *args: Any) -> None:
                run.opened.append(name)
                run.arguments[name] = args

            def close(self) -> None:
                run.opened.remove(name)

            def write(self, step: int, values: dict[str, Any]) -> None:
                run.done.append((step, "report"))
                run.metrics.append(values)

            def event(self, event: dict[str, Any]) -> None:
                run.events.append(event)

            def end_step(self, step: int, *, stopped: bool) -> None:
                run.done.append((step, "profile"))

        return Closing

    def _take(self, position: int, following: int) -> list[Any]:
        self.read.append((position, following))
        return [SimpleNamespace(missing=0)]

    def _run_step(self, engine: Any, *_: Any, step: int, observing: bool, update_bias: bool, guard: Any, **__: Any):
        if guard.trial:
            self.done.append((step - 1, "trial"))
        else:
            self.updates_bias.append(update_bias)
            self.rates.append([group["lr"] for group in engine.optimizer.param_groups])
        guard.offer(torch.tensor(self.losses.get(step, 2.0)), TOKENS)
        engine.optimizer.step()
        return None, "sums" if observing else None

    def _evaluate(self, *_: Any, progress: Callable[[], None], **__: Any) -> None:
        progress()
        self.done.append((self.state.step, "evaluation"))

    def _check_for_corruption(self, *_: Any) -> Corruption | None:
        self.done.append((self.state.step, "corruption check"))
        return Corruption({1: "host"}, known=True) if self.state.step == self.corrupt_at else None

    def _compare(self, *_: Any) -> tuple[dict[str, Any], None]:
        self.done.append((self.state.step, "stragglers"))
        return {"slowest_rank": 1}, None

    def _save(self, engine: Any, state: Any, keep: str | None) -> None:
        self.done.append((state.step, "save", keep, len(state.guard.get("losses", [])), state.good_probe))

    def _votes(self) -> dict[str, float]:
        return {"stop": float(self.asked_after is not None and self.state.step + 1 >= self.asked_after)}

    def begin(self, profiled: ProfiledSteps | None = None, **store: Any) -> Training:
        kept: Any = SimpleNamespace(
            before_update=lambda: None, finish=lambda: True, take_events=list, check_saved=lambda step: None,
            unmark=lambda *_: None, commit=lambda totals, proof: None, prove=lambda proof: None, votes=self._votes,
            save=self._save, took_s=0.0, leave_suspect=lambda step: f"newest before {step}",
        )  # fmt: skip
        vars(kept).update(store)
        engine: Any = SimpleNamespace(
            optimizer=Optimizer(), device=torch.device("cpu"), module=None, train=lambda: None
        )  # fmt: skip
        stop: Any = SimpleNamespace(reason=lambda: None, needed_s=0.0, answered=lambda: None)
        writer, stand = self._closing("writer")(), Stand()
        self.opened.remove("writer")  # which is its owner's to close
        return Training(engine, self.job, kept, self.state, stand, stop, writer, self.path, profiled)  # type: ignore[arg-type]


@pytest.fixture
def new_run(monkeypatch, tmp_path) -> Callable[..., FakeRun]:
    return lambda *args, **given: FakeRun(monkeypatch, tmp_path, *args, **given)


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA"), UserError("gone"), KeyboardInterrupt(), SystemExit(2)])
def test_the_profiler_is_closed_on_every_way_out(new_run, monkeypatch, error):
    run = new_run()
    training = run.begin(ProfiledSteps(2, 3))
    assert run.opened == ["profiler"]

    def step() -> None:
        run.state.step += 1
        if error is not None and run.state.step == 2:
            raise error

    monkeypatch.setattr(training, "_step", step)
    if error is None:
        assert training.run() == Outcome("finished")
    else:
        with pytest.raises(type(error)):
            training.run()
    assert run.opened == []


def test_a_phase_without_the_profiled_steps_profiles_nothing(new_run):
    run = new_run()
    run.begin(ProfiledSteps(5, 6))
    assert run.opened == []


def test_the_end_of_a_phase_saves_the_state_of_the_next_and_keeps_it(new_run):
    run = new_run(4, ends="next_phase", numerics={"spikes": Spikes(window=8)}, evaluation={"every_steps": 100})
    saved = []
    training = run.begin(save=lambda engine, state, keep: saved.append((state, keep)))
    assert training.run() == Outcome("next_phase")
    ((state, keep),) = saved
    assert keep == "the last of phase run"
    assert (state.step, state.phase, state.sequences, state.phase_sequences) == (4, 1, 0, [4 * SEQUENCES])
    assert (state.guard["losses"], state.guard["last_update"]) == ([], 4)  # another phase has another level
    assert [entry[1] for entry in run.done] == [*["report"] * 4, "evaluation", "trial"]
    assert run.events == []  # nothing has finished


def test_a_phase_does_not_end_with_a_step_that_was_skipped(new_run):
    run = new_run(4, ends="next_phase", losses={4: math.nan})
    assert run.begin().run() == Outcome("next_phase")
    assert run.state.step == 5
    assert [entry[0] for entry in run.done if entry[1] == "save"] == [5]


def test_a_stop_in_the_last_step_of_a_phase_stops_with_the_next_ones_checkpoint(new_run):
    run = new_run(4, ends="next_phase", asked_after=4)
    assert run.begin().run() == Outcome("stopped")
    assert [entry[:3] for entry in run.done if entry[1] == "save"] == [(4, "save", "the last of phase run")]


def test_what_follows_a_step_has_its_order_and_its_cadence(new_run):
    run = new_run(
        7,
        logging={"every_steps": 4},
        watch={"corruption_check_every_steps": 3, "stragglers_every_steps": 2},
        evaluation={"every_steps": 6},
        checkpoint={"every_steps": 3},
    )
    assert run.begin(ProfiledSteps(1, 7)).run() == Outcome("finished")
    assert [entry[:2] for entry in run.done] == [
        (1, "report"), (1, "profile"),
        (2, "stragglers"), (2, "profile"),
        (3, "corruption check"), (3, "save"), (3, "profile"),
        (4, "stragglers"), (4, "report"), (4, "profile"),
        (5, "profile"),
        (6, "stragglers"), (6, "corruption check"), (6, "evaluation"), (6, "save"), (6, "profile"),
        (7, "report"), (7, "evaluation"), (7, "save"), (7, "profile"),
        (7, "trial"),
    ]  # fmt: skip
    assert [entry[4] for entry in run.done if entry[1] == "save"] == [
        3,
        6,
        6,
    ]  # the last good check, that of its own step too
    assert [event["event"] for event in run.events] == ["finished"]


@pytest.mark.parametrize("schedule", [{}, {"kind": "wsd", "decay_tokens": 3 * TOKENS}])
def test_each_step_has_the_rate_of_the_tokens_up_to_its_end(schedule, new_run):
    run = new_run(8, schedule=schedule)
    run.begin().run()
    expected = [learning_rate(run.job.run.schedule, step * TOKENS) for step in range(1, 9)]
    assert [metrics["lr"] for metrics in run.metrics] == expected
    assert run.rates == [[rate, rate] for rate in expected]
    assert (expected[0], expected[-1]) == (0.5, pytest.approx(0.1))
    assert [metrics["tokens"] for metrics in run.metrics] == [step * TOKENS for step in range(1, 9)]


def test_throughput_counts_the_tokens_of_all_ranks(new_run):
    run = new_run()
    run.begin().run()
    assert run.counted == [TOKENS] * 4


def test_the_time_of_reading_checkpoints_and_evaluation_is_told_from_the_rest(new_run):
    run = new_run(3, evaluation={"every_steps": 2}, checkpoint={"every_steps": 2})
    run.begin().run()
    assert [name for step, name in run.phases if step == 0] == ["data_wait"]
    assert [name for step, name in run.phases if step == 1] == ["checkpoint", "other", "data_wait"]
    evaluation_and_save = ["evaluation", "other", "checkpoint", "other"]
    assert [name for step, name in run.phases if step == 2] == [
        "checkpoint",
        "other",
        *evaluation_and_save,
        "data_wait",
    ]
    assert [name for step, name in run.phases if step == 3] == ["checkpoint", "other", *evaluation_and_save]


@pytest.mark.parametrize(("share", "moving"), [(0.0, 8), (0.25, 6), (0.5, 4), (1.0, 0)])
def test_the_expert_bias_stands_still_in_the_last_share_of_the_tokens(share, moving, new_run):
    run = new_run(8, routing={"bias_freeze_share": share})
    run.begin().run()
    assert run.updates_bias == [True] * moving + [False] * (8 - moving)


def test_a_checkpoint_is_taken_before_the_decay_and_marked_as_that(new_run):
    run = new_run(8, schedule={"kind": "wsd", "decay_tokens": 3 * TOKENS})
    run.begin().run()
    assert [entry[:3] for entry in run.done if entry[1] == "save"] == [
        (5, "save", LAST_BEFORE_DECAY),
        (8, "save", None),
    ]


def test_a_checkpoint_has_the_guards_history_up_to_its_own_step(new_run):
    run = new_run(6, numerics={"spikes": Spikes(window=8)}, checkpoint={"every_steps": 2})
    run.begin().run()
    assert [entry[3] for entry in run.done if entry[1] == "save"] == [2, 4, 6]


@pytest.mark.parametrize("asked_after", [1, 3])
def test_a_stop_that_is_asked_for_saves_and_says_so(asked_after, new_run):
    run = new_run(6, asked_after=asked_after)
    assert run.begin().run() == Outcome("stopped")
    assert [entry[0] for entry in run.done if entry[1] == "save"] == [asked_after]
    assert [event["event"] for event in run.events] == ["stopped"]
    assert run.opened == []


def test_weights_are_tried_on_data_that_the_last_update_was_not_made_from(new_run):
    run = new_run(5, losses={4: math.nan})
    run.begin().run()
    assert run.read[:5] == [(2 * step, 2 * step + 2) for step in range(5)]
    assert run.read[5:] == [(4, 10)]  # of step 3: step 4 was skipped, step 5 was the last update


def test_a_stop_in_the_last_step_is_the_end(new_run):
    assert new_run(4, asked_after=4).begin().run() == Outcome("finished")


def test_a_stop_after_a_skipped_step_waits_for_sound_weights_but_not_for_long(new_run):
    run = new_run(9, asked_after=3, losses={3: math.nan})
    assert run.begin().run() == Outcome("stopped")
    assert [entry[0] for entry in run.done if entry[1] == "save"] == [4]
    run = new_run(9, asked_after=3, losses=dict.fromkeys((3, 4, 5, 6), math.nan))
    assert run.begin().run() == Outcome("stopped")
    assert [entry for entry in run.done if entry[1] in ("save", "trial")] == []
    assert run.state.step == 5
    assert "which was skipped and is not saved" in run.events[-1]["message"]


def test_a_spike_that_lasts_ends_the_attempt_with_a_rewind(new_run):
    spikes = Spikes(window=8, sustained=2)
    run = new_run(20, numerics={"spikes": spikes}, losses={9: 50.0, 10: 50.0}, checkpoint={"every_steps": 5})
    outcome = run.begin().run()
    assert outcome.kind == "rewind"
    assert outcome.spike is not None
    assert outcome.spike.before_step == 9
    assert (run.state.step, run.state.sequences) == (10, 10 * SEQUENCES)
    assert run.done[-1] == (10, "trial")  # of the weights, on data that they were not made from
    assert [entry[0] for entry in run.done if entry[1] == "save"] == [5]  # none of the spike
    assert run.opened == []


def test_a_corrupt_rank_ends_the_attempt_before_anything_is_saved(new_run):
    run = new_run(6, corrupt_at=4, watch={"corruption_check_every_steps": 2}, checkpoint={"every_steps": 2})
    outcome = run.begin().run()
    assert outcome == Outcome("corruption", corruption=Corruption({1: "host"}, known=True))
    assert [entry[0] for entry in run.done if entry[1] == "save"] == [2]
    assert run.state.good_probe == 2
    assert run.opened == []


def test_weights_that_cannot_be_trained_on_stop_the_run(new_run):
    run = new_run(9, numerics={"max_nonfinite_in_a_row": 2}, losses={4: math.nan, 5: math.nan})
    with pytest.raises(UserError, match=r"2 steps in a row up to 5 were not finite.*; newest before 3; lower") as error:
        run.begin().run()
    assert not isinstance(error.value, Unsound)
    assert run.opened == []
