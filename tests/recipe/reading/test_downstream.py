"""What a report says of downstream tasks over a run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recipe.reading.downstream import Series, counted_downstream, gap_rows, noise_of, score_rows


def test_noise_is_the_spread_about_a_line_and_signal_what_it_rises():
    steps_E = np.arange(100.0, 1100.0, 100.0)
    noise_E = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1]) * 0.01
    found = noise_of(Series(steps_E, 2.0 - steps_E / 1000 + noise_E))
    slope, start = np.polyfit(steps_E, 2.0 - steps_E / 1000 + noise_E, 1)
    left_E = 2.0 - steps_E / 1000 + noise_E - slope * steps_E - start
    assert found.noise == pytest.approx(np.sqrt((left_E**2).sum() / 8))
    assert found.signal == pytest.approx(slope * 900)
    assert found.signal_to_noise == pytest.approx(abs(found.signal) / found.noise)


def test_of_few_evaluations_or_undefined_scores_nothing_is_said():
    steps_E = np.arange(4.0)
    assert noise_of(Series(steps_E, steps_E)) is None
    assert noise_of(Series(np.arange(6.0), np.array([1, 2, 3, 4, 5, np.nan]))) is None


def evaluation(step: int, time: float, value: float) -> dict:
    return {"step": step, "time": time, "tasks": {"xnli_en": {"bits_per_byte": {"value": value, "stderr": 0.01}}}}


def test_evaluations_that_the_run_went_back_before_do_not_count(tmp_path):
    lines = [evaluation(10, 1.0, 3.0), evaluation(20, 2.0, 2.5), evaluation(20, 4.0, 2.4), evaluation(30, 5.0, 9.0)]
    text = "".join(json.dumps({**line, "schema_version": 2}) + "\n" for line in lines)
    (tmp_path / "downstream.jsonl").write_text(text)
    events = [{"event": "started", "time": 3.0, "step": 10}, {"event": "started", "time": 6.0, "step": 20}]
    counted = counted_downstream(tmp_path, events)
    assert [(e["step"], e["time"]) for e in counted] == [(10, 1.0), (20, 4.0)]
    (row,) = score_rows(counted)
    assert (row["task"], row["score"], row["stderr"], row["noise"]) == ("xnli_en", 2.4, "0.0100", "")


def test_a_gap_says_how_many_items_are_paired():
    metrics = {"acc": {"value": 0.1, "stderr": None}}
    rows = gap_rows(
        {"gaps": {"xnli en-zh": {"paired": 2490, "metrics": metrics}, "copa en-zh": {"paired": 0, "metrics": metrics}}}
    )
    assert [row["paired"] for row in rows] == ["2,490", "no"]
