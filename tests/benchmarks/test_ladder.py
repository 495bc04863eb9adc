"""The ladder on real text: its command is a valid ladder, and its table compares what was predicted with what was measured."""

from __future__ import annotations

import pytest

from benchmarks.ladder import ladder_words, main, markdown
from launch.ladder import parse, planned
from recipe.base.model_shape import load_model_shape


def test_its_command_is_a_ladder_that_can_be_fitted(tmp_path):
    args = parse(ladder_words(tmp_path))
    fitted, held_out = planned(args, load_model_shape(args.model))
    assert held_out.size.active > max(rung.size.active for rung in fitted)
    assert held_out.flops > 2 * max(rung.flops for rung in fitted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--corpus is missing; give it"),
        (["--corpus", "nothing"], "--work is missing; give it"),
        (["--corpus", "nothing", "--work", "w"], "--corpus nothing does not exist; give a file or folder of documents"),
    ],
    ids=["no corpus", "no work", "no such corpus"],
)
def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_table_compares_prediction_and_measurement():
    run = {"name": "w32-t5", "active": 86528, "tokens": 432768, "bits_per_byte": {"en": 2.5}}
    prediction = {"en": {"bits_per_byte": {"value": 2.0, "low": 1.9, "high": 2.1}}}
    held_out = {**run, "name": "w96-t20", "bits_per_byte": {"en": 2.02}, "prediction": prediction}
    result = {"device": "a CPU", "torch": "2", "date": "today", "seconds": 3000, "run_s": {"w32-t5": 60.0, "w96-t20": 1200.0}, "ladder": {"runs": [run], "held_out": held_out}}  # fmt: skip
    table = markdown(result)
    assert "| w32-t5 | 0.0865M | 0.433M | 2.5000 |" in table
    assert "| w96-t20 | 0.0865M | 0.433M | 2.0200, predicted 2.0000 (1.9000 to 2.1000), off by +1.0% |" in table
    assert "2 runs on a core each, 21m 00s of them together, 50m 00s from documents to the fitted law" in table
    assert "from documents" not in markdown({**result, "seconds": None})
