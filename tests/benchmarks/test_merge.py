"""Merged checkpoints of a constant learning rate against the last one, on held-out text."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks.merge import WAYS, compare, main, measured
from tests.conftest import ROOT, Called


@pytest.mark.slow
def test_merged_checkpoints_beat_the_last_and_do_not_reach_a_decay(prepared):
    """Small batches at a high rate: the last steps are noise around where the model is."""
    arguments = Namespace(tokens=prepared.tokens, model=ROOT / "recipe/configs/models/tiny", steps=256, rate=3e-2)
    found = measured(arguments, seed=0)
    assert list(found) == list(WAYS)
    for source in ("en", "zh"):
        last, merged, average, decayed = (found[way][source] for way in WAYS)
        assert decayed < merged < last - 0.02
        assert decayed < average < last - 0.02


def test_a_comparison_has_the_mean_and_the_worst_of_all_seeds():
    seeds = [{"last": {"en": 2.0}, **{way: {"en": below} for way in list(WAYS)[1:]}} for below in (1.5, 1.75)]
    merged = compare(seeds)["en"]["merged"]
    assert merged == {"mean": 1.625, "below_last": 0.375, "least_below_last": 0.25}


def test_steps_that_give_no_equal_distances_are_refused(tmp_path, capsys):
    done = Called(main, capsys, "--tokens", tmp_path, "--steps", 250)
    assert done.returncode == 2
    assert "no multiple of 32" in done.stderr
