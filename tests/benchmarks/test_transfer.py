"""Sweeps of hyperparameters: where an optimum is, what a run is made of, and that runs are shared."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import transfer
from benchmarks.transfer import BASE, Setting, optimum, summary
from recipe.data.indexed import Shard, ShardWriter, token_dtype
from recipe.data.token_folder import Source
from tests.conftest import Called


@pytest.fixture
def tokens(tmp_path, monkeypatch):
    """A small vocabulary in which each token tells the next one, as the text of one language."""
    writer = ShardWriter(tmp_path / "shard", token_dtype(64))
    writer.add_document(np.arange(40_000) * 7 % 64)
    writer.close()
    shard = Shard(writer.prefix)
    source = Source("en", (shard,), shard.num_tokens, 4 * shard.num_tokens)
    folder = SimpleNamespace(tokenizer={"vocab_size": 64}, sources=lambda split: [source], sizes=lambda split: {"en": shard.num_tokens})  # fmt: skip
    monkeypatch.setattr(transfer, "TokenFolder", lambda path: folder)
    return tmp_path


def test_an_optimum_is_the_vertex_of_a_parabola_in_the_logarithm():
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    found = optimum(rates, [2 + (np.log(rate) - np.log(3e-3)) ** 2 for rate in rates])
    assert found["optimum"] == pytest.approx(3e-3)
    assert found["best"] == 4e-3
    assert found["factor_of_two"] == pytest.approx(np.log(2) ** 2 / 2)


@pytest.mark.parametrize(("losses", "bound"), [([3, 2, 1], "above"), ([1, 2, 3], "below")])
def test_a_sweep_that_is_best_at_its_end_only_bounds_the_optimum(losses, bound):
    found = optimum([1e-3, 2e-3, 4e-3], losses)
    assert found["bound"] == bound
    assert "optimum" not in found


def test_a_setting_changes_its_own_number_of_the_model():
    base, wide = BASE.shape(64), replace(BASE, std_factor=2.0, rope_theta=100.0).shape(64)
    assert wide.initializer_range == 2 * base.initializer_range
    assert wide.rope_parameters.rope_theta == 100.0
    assert wide.hidden_size == base.hidden_size == BASE.width
    assert BASE.schedule().problems() == []
    assert BASE.tokens % BASE.step_tokens == 0


def test_runs_that_sweeps_share_are_trained_once(tokens, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.merge.HELD_OUT", transfer.BATCH)
    short = replace(BASE, width=32, batch=4, tokens=16 * 4 * transfer.SEQ_LENGTH)
    sweeps = {
        name: (varied, tuple(replace(short, **{varied: value}) for value in values))
        for name, varied, values in (
            ("width 32", "lr", (1e-3, 3e-3)), ("seed", "seed", (0, 1)), ("bias update rate", "bias_rate", (0.0, 1e-3)),
        )
    }  # fmt: skip
    monkeypatch.setattr(transfer, "SWEEPS", sweeps)
    output = tokens / "out.json"
    assert not transfer.main(["--tokens", str(tokens), "--output", str(output)])
    capsys.readouterr()
    result = json.loads(output.read_text())
    assert len(result["runs"]) == 4  # six settings, of which three are the base
    monkeypatch.setattr(transfer, "run", None)  # a second start trains nothing
    assert not transfer.main(["--tokens", str(tokens), "--output", str(output)])
    assert json.loads(output.read_text()) == result
    capsys.readouterr()
    slow, fast = result["sweeps"]["width 32"]["mean"]
    assert fast < slow < np.log2(64) / 4  # of a vocabulary of 64 in tokens of four bytes
    assert result["sweeps"]["width 32"]["bound"] == "above"
    assert not transfer.main(["--table", str(output)])
    table = capsys.readouterr().out
    assert "| width 32 | learning rate |" in table
    assert "4 runs" in table


def test_step_law_is_asked_for_each_sweep_of_rates():
    runs = {setting: {"mean": 2.0 + setting.lr, "largest_load": 1.0} for _, settings in transfer.SWEEPS.values() for setting in settings}  # fmt: skip
    sweeps = summary(runs, 2000)
    assert sweeps["width 32"]["step_law"] > sweeps["width 64"]["step_law"] > sweeps["width 96"]["step_law"]
    assert sweeps["3 times the tokens"]["step_law"] > sweeps["width 64"]["step_law"]
    assert "step_law" not in sweeps["rotary base"]


def test_a_sweep_with_a_run_to_come_is_left_out():
    missing = transfer.SWEEPS["rotary base"][1][-1]  # the first one is in other sweeps too
    runs = {setting: {"mean": 2.0, "largest_load": 1.0} for _, settings in transfer.SWEEPS.values() for setting in settings if setting != missing}  # fmt: skip
    assert set(summary(runs, 2000)) == set(transfer.SWEEPS) - {"rotary base"}


def test_each_sweep_varies_one_number():
    for name, (varied, settings) in transfer.SWEEPS.items():
        others = {tuple(value for key, value in vars(setting).items() if key != varied) for setting in settings}
        assert len(others) == 1, name
        assert all(isinstance(setting, Setting) for setting in settings)


def test_a_run_without_tokens_is_refused(capsys):
    done = Called(transfer.main, capsys)
    assert done.returncode == 2
    assert "--tokens is missing" in done.stderr
