"""Two checkpoints compared item by item."""

from __future__ import annotations

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.evaluation.downstream.comparison import changes, read_items, write_items
from recipe.evaluation.downstream.estimates import difference
from recipe.evaluation.downstream.gold import Items


def items(bits: list[float], keys: str = "abc") -> Items:
    return Items(tuple(keys), np.zeros(3, int), np.array(bits), np.array([4.0, 5.0, 6.0]), np.array([1.0, 0.0, 1.0]))


def test_items_come_back_and_are_compared_in_pairs(tmp_path):
    before, now = items([8.0, 12.0, 10.0]), items([7.0, 11.5, 9.0])
    letters = Items(("a",), correct_N=np.array([1.0]), no_gold="letters")
    write_items(tmp_path / "items.json", {"xnli_en": before, "letters": letters})
    found = changes({"xnli_en": now, "new": now}, read_items(tmp_path / "items.json"))
    assert found.keys() == {"xnli_en"}
    assert found["xnli_en"]["acc"] == {"value": 0.0, "stderr": 0.0}
    metric = "bits_per_byte"
    assert found["xnli_en"][metric]["value"] == pytest.approx(-2.5 / 15)
    assert found["xnli_en"][metric] == difference(now.estimates()[metric], before.estimates()[metric], paired=True)
    assert read_items(tmp_path / "items.json")["letters"].no_gold == "letters"


def test_other_items_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="xnli_en has other items than in the file of --compare"):
        changes({"xnli_en": items([1.0, 2.0, 3.0])}, {"xnli_en": items([1.0, 2.0, 3.0], "abd")})
    (tmp_path / "results.json").write_text("{}")
    for name in ("none.json", "results.json"):
        with pytest.raises(UserError, match="is no file that --items of this command wrote"):
            read_items(tmp_path / name)
