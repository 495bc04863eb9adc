"""A ladder that was written predicts runs that it was not written for, and refuses those that it says nothing of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.scaling.ladder_file import SCHEMA, VERSION, describe_loss, load_ladder, planned_loss
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law, Size

LAW = Law(0.9, 30.0, PUBLISHED_ALPHA, 60.0, PUBLISHED_BETA)
TARGET = Size(1e8, 0.25, 1e10)


@pytest.fixture
def ladder():
    draws = np.random.default_rng(0)
    runs = []
    for active in (1e6, 2e6, 4e6):
        for ratio in (10, 40):
            bits = LAW.loss(Size(active, 0.25, active * ratio)) * (1 + 0.001 * draws.standard_normal())
            measured = {"bits_per_byte": {"en": bits}, "loss": {"en": 1.5 * bits}}
            runs.append({"active": active, "share": 0.25, "tokens": active * ratio, **measured})
    return {"schema": SCHEMA, "version": VERSION, "exponents": "published", "runs": runs[:-1], "held_out": runs[-1], "fits": {}}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def written(record):
        path = tmp_path / "ladder.json"
        path.write_text(json.dumps(record))
        return path

    return written


def test_a_run_that_the_ladder_was_not_written_for_gets_its_loss(ladder, write):
    told = planned_loss(load_ladder(write(ladder)), TARGET)
    assert told["sources"]["en"]["bits_per_byte"]["value"] == pytest.approx(LAW.loss(TARGET), rel=0.02)
    assert told["sources"]["en"]["loss"]["value"] == pytest.approx(1.5 * LAW.loss(TARGET), rel=0.02)
    assert told["basis"]["times"] == {"active": 25, "tokens": 62.5}
    text = describe_loss(told)
    assert f"{told['sources']['en']['bits_per_byte']['value']:.4f} bits per byte" in text
    assert "this run has 25 and 62.5 times as many. The exponents are published ones, not fitted." in text


def test_the_ladder_in_the_result_of_the_benchmark_is_the_same(ladder, write):
    alone, inside = (load_ladder(write(record)) for record in (ladder, {"seconds": 1.0, "ladder": ladder}))
    assert inside.runs == alone.runs
    assert inside.fits["en"].law == alone.fits["en"].law


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({"version": 2}, TARGET, "is no ladder.json of version 1"),
        ({"schema": "other"}, TARGET, "is no ladder.json of version 1"),
        ({}, Size(1e8, 0.5, 1e10), "has an active share of 0.250 and the model 0.500"),
    ],
    ids=["newer", "another file", "another sparsity"],
)
def test_what_says_nothing_of_the_run_is_refused(ladder, write, change, target, message):
    with pytest.raises(UserError, match=message):
        planned_loss(load_ladder(write({**ladder, **change})), target)


def test_an_unfinished_ladder_is_refused(ladder, write):
    del ladder["fits"]
    with pytest.raises(UserError, match="is not finished; give its"):
        load_ladder(write(ladder))
