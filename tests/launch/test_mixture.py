"""The mixture command: what it refuses, that held-out mixtures are predicted before they run, and when it proposes nothing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

import launch.mixture
import launch.proxies
from launch.mixture import main
from recipe.data.token_folder import TokenFolder
from recipe.run.records import EVALUATIONS, EVENTS, append_record
from recipe.scaling.mixture.regression import redraws
from tests.conftest import ROOT
from tests.recipe.scaling.mixture.planted import LAWS

NATS = 1.5  # of a bit per byte


@pytest.fixture
def words(prepared, tmp_path):
    """The arguments of a small call; those of a test come last and win."""
    return [
        "--model", ROOT / "recipe/configs/models/tiny", "--tokens", prepared.tokens, "--tokenizer", prepared.tokenizer, "--output", tmp_path / "mixture",
        "--width", "16", "--tokens-per-parameter", "0.05", "--seq", "32", "--cpu-ranks", "1", "--proxies", "8",
    ]  # fmt: skip


def call(words, *more: object) -> int | None:
    return main([str(word) for word in (*words, *more)])


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """In place of the launcher: losses by planted laws of the run config's weights, with a little noise; which were run."""
    path, draws = tmp_path / "mixture" / "mixture.json", np.random.default_rng(0)
    calls: dict[str, dict | None] = {}

    def run(command, **_):
        folder = Path(command[command.index("--config") + 1]).parent
        calls[folder.name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        weights = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["data"]["mixture"]["weights"]
        shares, noise = np.array([weights["en"], weights["zh"]]), np.exp(0.002 * draws.standard_normal())
        sources = {s: {"bits_per_byte": law.loss(shares) * noise} for s, law in LAWS.items()}  # fmt: skip
        for values in sources.values():
            values["loss"] = NATS * values["bits_per_byte"]
        append_record(folder / "run" / EVALUATIONS, {"step": 1, "sources": sources})
        append_record(folder / "run" / EVENTS, {"event": "finished", "step": 1})
        return 0

    monkeypatch.setattr(launch.proxies.subprocess, "call", run)
    monkeypatch.setattr(launch.proxies, "check_job", lambda *_: None)  # the ladder's tests run it; ten take seconds
    monkeypatch.setattr(launch.mixture, "redraws", partial(redraws, draws=20))
    return calls


def record(tmp_path):
    return json.loads((tmp_path / "mixture" / "mixture.json").read_text(encoding="utf-8"))


def test_a_dry_run_prints_the_mixtures_and_writes_nothing(words, tmp_path, capsys):
    assert call(words, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "| natural |" in output
    assert "| held-out-2 |" in output
    assert "10 runs of" in output
    assert not (tmp_path / "mixture").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--proxies", "5"], "--proxies 5 are too few for 2 sources; give 6 or more"),
        (["--objective", "fr=1"], "--objective names fr, but the held-out sources of"),
        (["--available", "fr=1T"], "--available names fr, but"),
        (
            ["--tokens-per-parameter", "9000"],
            "has; lower --tokens-per-parameter or --width, since proxies read fresh tokens",
        ),
        (["--target-tokens", "1T"], "lower it or add data"),
    ],
    ids=["few proxies", "unknown objective", "unknown source", "few tokens", "target reads too often"],
)
def test_what_makes_no_regression_is_refused_before_anything_is_written(words, tmp_path, capsys, more, message):
    assert call(words, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mixture").exists()


def test_held_out_mixtures_are_predicted_before_they_run(words, tmp_path, trainer, capsys):
    assert call(words) == 0
    assert list(trainer)[-2:] == ["held-out-1", "held-out-2"]
    assert trainer["mix-7"] is None
    before = trainer["held-out-1"]["held_out"]
    after = record(tmp_path)["held_out"]
    assert "bits_per_byte" not in before[0]
    for told, run in zip(before, after, strict=True):
        assert run["prediction"] == told["prediction"]
        for source, bits in run["prediction"].items():
            assert bits["low"] < bits["value"] < bits["high"]
            assert bits["value"] == pytest.approx(run["bits_per_byte"][source], rel=0.1)
    assert "| held-out-1 | en |" in capsys.readouterr().out


def test_the_proposal_is_better_than_the_natural_mixture_and_goes_into_a_run_config(words, tmp_path, trainer, capsys):
    call(words)
    proposal = record(tmp_path)["proposal"]
    shares = np.array([proposal["shares"][name]["value"] for name in ("en", "zh")])
    grid = np.linspace(0.001, 0.999, 999)
    best = min(grid, key=lambda en: sum(law.loss(np.array([en, 1 - en])) for law in LAWS.values()))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(best, abs=0.1)
    lines = capsys.readouterr().out.split("for the run config:\n\n")[1].split("wrote")[0]
    assert yaml.safe_load(lines)["data"]["mixture"]["weights"] == pytest.approx(dict(zip(("en", "zh"), shares, strict=True)), abs=1e-4)  # fmt: skip


def test_the_target_reads_no_source_more_often_than_allowed(words, tmp_path, trainer, prepared, capsys):
    sizes = TokenFolder(prepared.tokens).sizes("train")
    target = sum(sizes.values())
    call(words, "--target-tokens", target, "--max-epochs", "1.4", "--objective", "zh=1")
    share = record(tmp_path)["proposal"]["shares"]["zh"]
    assert share["value"] == pytest.approx(1.4 * sizes["zh"] / target, rel=1e-3)
    assert "max_epochs: 1.4" in capsys.readouterr().out


def test_a_finished_proxy_is_not_run_again_and_predictions_stay(words, tmp_path, trainer):
    call(words)
    before = record(tmp_path)
    trainer.clear()
    call(words, "--objective", "zh=1")
    assert trainer == {}
    after = record(tmp_path)
    assert after["held_out"] == before["held_out"]
    assert after["objective"] == {"zh": 1.0}
    assert after["proposal"] != before["proposal"]


def test_nothing_is_proposed_where_the_mean_predicts_as_well(words, tmp_path, trainer, monkeypatch, capsys):
    draws = np.random.default_rng(1)
    for law in LAWS:
        monkeypatch.setitem(LAWS, law, type("Noise", (), {"loss": staticmethod(lambda _: 2 * np.exp(0.1 * draws.standard_normal()))}))  # fmt: skip
    assert call(words) == 2
    assert "predict a run no better than the mean of the others" in capsys.readouterr().err
    assert record(tmp_path)["proposal"] is None
