"""The learning rate over the tokens of a run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from recipe.base.run_config.learning_rate import learning_rate, rate_in_phase
from recipe.base.run_config.phase import Phase, PhaseLearningRate
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.base.run_config.schedule import Schedule

COSINE = Schedule(total_tokens=1000, peak_lr=1.0, min_lr=0.1, warmup_tokens=100)
WSD = Schedule(total_tokens=1000, kind="wsd", peak_lr=1.0, min_lr=0.1, warmup_tokens=100, decay_tokens=200)


@pytest.mark.parametrize("schedule", [COSINE, WSD])
def test_warmup_is_linear_and_the_end_is_min_lr(schedule):
    assert learning_rate(schedule, 50) == pytest.approx(0.5)
    assert learning_rate(schedule, 100) == 1.0
    assert learning_rate(schedule, 1000) == pytest.approx(0.1)
    assert learning_rate(schedule, 5000) == pytest.approx(0.1)


def test_cosine_is_half_way_down_in_the_middle():
    assert learning_rate(COSINE, 550) == pytest.approx(0.55)


def test_wsd_is_flat_until_its_decay_and_linear_in_it():
    assert learning_rate(WSD, 800) == 1.0
    assert learning_rate(WSD, 900) == pytest.approx(0.55)


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(COSINE.model_copy(update={"warmup_tokens": 0}), 0) == 1.0


LEGAL = [
    Schedule(
        total_tokens=total, kind=kind, peak_lr=1e-3, min_lr=min_lr, warmup_tokens=warmup * total // 8, decay_tokens=decay * total // 8
    )
    for total in (1, 7, 1000, 10**13)
    for min_lr in (0.0, 1e-4, 1e-3)
    for warmup in (0, 1, 4, 7, 8)
    for kind, decay in (("cosine", 0), ("wsd", 1), ("wsd", 4), ("wsd", 8))
    if warmup + decay <= 8
]  # fmt: skip


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_every_legal_schedule_has_a_rate_at_every_token(kind):
    schedules = [schedule for schedule in LEGAL if schedule.kind == kind]
    assert len(schedules) > 50
    for schedule in schedules:
        total = schedule.total_tokens
        edges = {
            0,
            1,
            total,
            schedule.warmup_tokens,
            total - schedule.decay_tokens,
            *(k * total // 50 for k in range(51)),
        }
        tokens = sorted({t for edge in edges for t in (edge - 1, edge, edge + 1) if 0 <= t <= total})
        rates = [learning_rate(schedule, t) for t in tokens]
        assert all(0 <= rate <= schedule.peak_lr for rate in rates)
        assert all(
            rate >= schedule.min_lr * (1 - 1e-12)
            for t, rate in zip(tokens, rates, strict=True)
            if t >= schedule.warmup_tokens
        )
        warming = [rate for t, rate in zip(tokens, rates, strict=True) if t <= schedule.warmup_tokens]
        falling = [rate for t, rate in zip(tokens, rates, strict=True) if t >= schedule.warmup_tokens]
        assert warming == sorted(warming)
        assert falling == sorted(falling, reverse=True)
        for beyond in (total + 1, 2 * total, total + 10**15):
            assert learning_rate(schedule, beyond) == learning_rate(schedule, total)


def test_a_warmup_as_long_as_the_run_ends_at_the_peak():
    schedule = Schedule(total_tokens=600, peak_lr=1.0, min_lr=0.1, warmup_tokens=600)
    assert [learning_rate(schedule, tokens) for tokens in (300, 600, 768)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "tokens", "rate"),
    [
        (COSINE, 0, 0.0),
        (COSINE, 10, 0.1),
        (COSINE, 325, 0.1 + 0.9 * 0.8535533905932737),  # (1 + cos 45 degrees) / 2
        (COSINE, 700, 0.1 + 0.9 * 0.25),  # (1 + cos 120 degrees) / 2
        (COSINE, 775, 0.1 + 0.9 * 0.14644660940672627),
        (WSD, 10, 0.1),
        (WSD, 101, 1.0),
        (WSD, 801, 0.1 + 0.9 * 199 / 200),
        (WSD, 950, 0.325),
        (WSD, 999, 0.1 + 0.9 / 200),
    ],
)
def test_rates_at_known_tokens(schedule, tokens, rate):
    assert learning_rate(schedule, tokens) == pytest.approx(rate, rel=1e-12)


def phases_of(schedule: Schedule, *later: tuple[int, dict[str, Any] | None, int]) -> list[ResolvedPhase]:
    """A first phase of 400 tokens in steps of 10, and later ones: the end, the learning rate and the tokens of a step."""
    run, phases = SimpleNamespace(schedule=schedule, data=SimpleNamespace(seq_length=1)), []
    for number, (end, rate, step) in enumerate([(400, None, 10), *later]):
        settings = Phase(name=str(number), learning_rate=None if rate is None else PhaseLearningRate(**rate))
        ds, first = SimpleNamespace(train_batch_size=step), phases[-1].end_tokens if phases else 0
        phases.append(ResolvedPhase(number, settings.name, settings, first, end, run, None, ds, {}))  # type: ignore[arg-type]
    return phases


@pytest.mark.parametrize(
    ("shape", "share"),
    [("linear", 0.25), ("cosine", (1 - math.cos(math.pi / 4)) / 2), ("one_minus_sqrt", 0.5)],
)
def test_a_phase_goes_from_where_the_one_before_ended(shape, share):
    phases = phases_of(WSD, (700, {"shape": shape, "to": 0.2}, 10), (1000, {"shape": "constant"}, 10))
    assert rate_in_phase(phases, 0, 400) == rate_in_phase(phases, 1, 400) == 1.0
    assert rate_in_phase(phases, 1, 475) == pytest.approx(1.0 - 0.8 * share, rel=1e-12)
    for tokens in (700, 705):  # its last step may go beyond its end
        assert rate_in_phase(phases, 1, tokens) == pytest.approx(0.2)
    assert rate_in_phase(phases, 2, 900) == pytest.approx(0.2)


def test_a_phase_that_follows_the_schedule_has_its_rate():
    phases = phases_of(COSINE, (1000, None, 10))
    assert [rate_in_phase(phases, n, t) for n, t in ((0, 50), (0, 405), (1, 700))] == [
        learning_rate(COSINE, t) for t in (50, 405, 700)
    ]


@pytest.mark.parametrize(("scaling", "factor"), [("sqrt", 2.0), ("linear", 4.0)])
def test_rates_follow_the_batch_where_they_are_to(scaling, factor):
    """At the reference they are as written; a phase with a rate of its own goes on from the unscaled one."""
    schedule = WSD.model_copy(update={"batch_scaling": scaling, "reference_batch_tokens": 10})
    phases = phases_of(schedule, (800, None, 40), (1000, {"shape": "linear", "to": 0.5}, 40))
    assert rate_in_phase(phases, 0, 50) == learning_rate(WSD, 50)
    assert rate_in_phase(phases, 1, 500) == factor
    assert rate_in_phase(phases, 2, 900) == pytest.approx(0.75 * factor)
