"""A run is read as it counts, and drawn small however long it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipe.reading.charts import short, ticks
from recipe.reading.goodput import goodput
from recipe.reading.history import bucketed, read_history
from recipe.run.records import last_metrics, read_events, read_metrics, read_starts


def test_steps_that_were_done_again_count_once_and_are_kept_aside(written):
    run = written()
    run.steps(1, 10, loss=lambda step: 5.0)
    run.steps(7, 12, loss=lambda step: 4.0)
    history = read_history(run.path)
    assert history.steps.tolist() == list(range(1, 13))
    assert history["loss"].tolist() == [5.0] * 6 + [4.0] * 6
    (lost,) = history.lost
    assert lost["step"].tolist() == [7, 8, 9, 10]
    assert history.layer_loads_TL.shape == (12, 2)
    assert history.under("phase_s")["forward"].tolist() == [0.4] * 12
    assert np.isnan(history["mfu"]).all()


def test_steps_that_were_not_finite_are_read(written):
    run = written()
    run.steps(1, 3, loss=lambda step: {1: 2.0, 2: math.nan, 3: math.inf}[step])
    first, second, third = (m["loss"] for m in read_metrics(run.path))
    assert (first, math.isnan(second), third) == (2.0, True, math.inf)
    assert last_metrics(run.path)["loss"] == math.inf
    at, *_ = bucketed(read_history(run.path).steps, read_history(run.path)["loss"], 500)
    assert at.tolist() == [1.0]


def test_a_long_curve_keeps_its_extremes():
    x, y = np.arange(100_000.0), np.zeros(100_000)
    y[777], y[99_999] = 9.0, -3.0
    at, mean, least, most = bucketed(x, y, 500)
    assert len(at) == 500
    assert (most.max(), least.min()) == (9.0, -3.0)
    assert at[most.argmax()] == pytest.approx(777, abs=200)
    assert np.average(mean) == pytest.approx(y.mean())


def test_missing_values_are_left_out_of_a_curve():
    x, y = np.arange(4.0), np.array([np.nan, 1.0, np.nan, 3.0])
    at, mean, *_ = bucketed(x, y, 500)
    assert (at.tolist(), mean.tolist()) == ([1.0, 3.0], [1.0, 3.0])
    assert len(bucketed(x, np.full(4, np.nan), 500)[0]) == 0


def test_the_time_of_a_faulted_run_is_accounted_for(written):
    run = written()
    run.start(takes=10)
    run.steps(1, 100)
    run.fault(100, lost_s=40, down=5)
    run.start(60, takes=20)
    run.steps(61, 200)
    run.event("finished", 200)
    spent = goodput(read_starts(run.path), read_events(run.path), read_history(run.path))
    assert spent["starting"] == pytest.approx(30)
    assert spent["down"] == pytest.approx(5)
    assert spent["lost steps"] == pytest.approx(40)
    trained = 200.0  # of which a twentieth each was spent waiting for data and for checkpoints
    assert spent["training"] == pytest.approx(0.9 * trained)
    assert spent["data wait"] == spent["checkpoint"] == pytest.approx(0.05 * trained)
    assert sum(spent.values()) == pytest.approx(run.now - 1_700_000_000.0)


def test_ticks_are_round_numbers_within_the_axis():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(1.3, 2.2, 5) == pytest.approx([1.4, 1.6, 1.8, 2.0, 2.2])
    assert ticks(3, 3, 5) == [3]
    assert [short(v) for v in (0.05, 950, 20_000, 1.2e6, 1e12)] == ["0.05", "950", "20k", "1.2M", "1T"]
