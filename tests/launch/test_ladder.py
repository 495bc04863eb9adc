"""The ladder: what it refuses, what it writes, and that it predicts a held-out run before that is trained."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import launch.ladder
import launch.proxies
import recipe.scaling.measured
from launch.ladder import main, parse, planned, write_ladder
from launch.proxies import is_finished, train
from recipe.base.model_shape import load_model_shape
from recipe.run.records import EVALUATIONS, EVENTS, append_record, read_evaluations
from recipe.scaling.interval import predict
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law
from recipe.scaling.rungs import rungs
from tests.conftest import ROOT

KAPPA = 0.4
LAWS = {"en": Law(0.9, 30.0, PUBLISHED_ALPHA, 60.0, PUBLISHED_BETA, KAPPA), "zh": Law(1.1, 20.0, PUBLISHED_ALPHA, 70.0, PUBLISHED_BETA, KAPPA)}  # fmt: skip
NATS = 1.5  # of a bit per byte


@pytest.fixture
def words(prepared, tmp_path):
    """The arguments of a small ladder; those of a call come last and win."""
    return [
        "--model", ROOT / "recipe/configs/models/tiny", "--tokens", prepared.tokens, "--tokenizer", prepared.tokenizer, "--output", tmp_path / "ladder",
        "--widths", "16", "24", "32", "--held-out", "40", "--tokens-per-parameter", "0.02", "0.1", "--seq", "32",
        "--cpu-ranks", "1",
    ]  # fmt: skip


def call(words, *more: object) -> int | None:
    return main([str(word) for word in (*words, *more)])


@pytest.fixture
def trainer(monkeypatch):
    """In place of the launcher: a run whose losses follow planted laws, with a little noise of its own; which were run."""
    calls: list[str] = []
    draws = np.random.default_rng(0)

    def run(command, **_):
        config = command[command.index("--config") + 1]
        folder = Path(config).parent
        calls.append(folder.name)
        rung = trainer_rungs[folder.name]
        noise = 1 + 0.001 * draws.standard_normal()
        sources = {s: {"bits_per_byte": law.loss(rung.size) * noise} for s, law in LAWS.items()}
        for values in sources.values():
            values["loss"] = values["bits_per_byte"] * NATS
        append_record(folder / "run" / EVALUATIONS, {"step": 1, "sources": sources})
        append_record(folder / "run" / EVENTS, {"event": "finished", "step": 1})
        return 0

    trainer_rungs: dict[str, object] = {}

    def remembered(*arguments, **named):
        made = rungs(*arguments, **named)
        trainer_rungs.update({rung.name: rung for rung in made})
        return made

    monkeypatch.setattr(launch.ladder, "rungs", remembered)
    monkeypatch.setattr(launch.proxies.subprocess, "call", run)
    monkeypatch.setattr(recipe.scaling.measured, "predict", partial(predict, draws=20))
    return calls


def test_a_dry_run_prints_the_cost_and_writes_nothing(words, tmp_path, capsys):
    assert call(words, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "w16-t0.02" in output
    assert "FLOPs in 7 runs" in output
    assert not (tmp_path / "ladder").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--held-out", "32"], "--held-out 32 must exceed all --widths; raise it"),
        (["--widths", "16", "24"], "4 runs are too few for a law, which needs 5"),
        (["--tokens-per-parameter", "0.1"], "3 runs are too few for a law"),
        (["--widths", "8", "16", "24", "31"], "the width 31 is no multiple of 8"),
        (["--tokens-per-parameter", "0.1", "900"], "lower --tokens-per-parameter or the widths"),
        (["--experts", "1", "8"], "--experts 1 is less than the 2 experts that a token passes; raise it"),
    ],
    ids=["held out is small", "few runs", "one ratio", "odd width", "few tokens", "few experts"],
)
def test_what_makes_no_ladder_is_refused_before_anything_is_written(words, tmp_path, capsys, more, message):
    assert call(words, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ladder").exists()


def test_the_held_out_run_is_predicted_before_it_runs(words, tmp_path, trainer, capsys):
    path, seen = tmp_path / "ladder" / "ladder.json", []
    original = launch.proxies.subprocess.call

    def looking(command, **options):
        seen.append(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
        return original(command, **options)

    launch.proxies.subprocess.call = looking
    assert call(words, "--target-tokens", "1M") == 0
    assert trainer[-1] == "w40-t0.1"
    assert seen[:-1] == [None] * 6
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["held_out"]["prediction"] == seen[-1]["held_out"]["prediction"]
    assert "bits_per_byte" not in seen[-1]["held_out"]
    for source, told in record["held_out"]["prediction"].items():
        bits = told["bits_per_byte"]
        assert bits["low"] < bits["value"] < bits["high"]
        assert bits["value"] == pytest.approx(record["held_out"]["bits_per_byte"][source], rel=0.01)
        assert told["loss"]["value"] == pytest.approx(NATS * bits["value"])
    assert set(record["target"]["prediction"]) == {"en", "zh"}
    assert "held out: w40-t0.1" in capsys.readouterr().out


def test_a_finished_run_is_not_run_again_and_its_prediction_stays(words, tmp_path, trainer):
    call(words)
    path = tmp_path / "ladder" / "ladder.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    call(words, "--target-tokens", "1M")
    assert len(trainer) == 7
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["held_out"] == before["held_out"]
    assert "target" in after


def test_a_lost_prediction_of_a_finished_run_is_not_made_again(words, tmp_path, trainer, capsys):
    call(words)
    (tmp_path / "ladder" / "ladder.json").unlink()
    assert call(words) == 2
    assert "its prediction is lost; restore it, or take another --output" in capsys.readouterr().err
    assert not (tmp_path / "ladder" / "ladder.json").exists()


def test_a_folder_of_another_ladder_is_refused(words, trainer, capsys):
    call(words)
    assert call(words, "--tokens-per-parameter", "0.02", "0.1", "--micro-batch", "1") == 2
    assert "holds runs of other settings" in capsys.readouterr().err


def test_a_run_that_fails_stops_the_ladder_with_its_log(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch.proxies.subprocess, "call", lambda *_, **__: 1)
    assert call(words) == 2
    assert "the run w32-t0.1 ended with exit code 1, see" in capsys.readouterr().err
    assert not (tmp_path / "ladder" / "ladder.json").exists()


def test_numbers_of_experts_teach_the_law_the_worth_of_an_active_share(words, tmp_path, trainer):
    assert call(words, "--experts", "8", "32") == 0
    record = json.loads((tmp_path / "ladder" / "ladder.json").read_text(encoding="utf-8"))
    assert len(record["runs"]) == 12
    assert "kappa" in record["fits"]["en"]["free"]
    assert record["fits"]["en"]["law"]["kappa"] == pytest.approx(KAPPA, abs=0.2)


@pytest.mark.slow
def test_a_rung_is_trained_by_the_launcher_once_and_its_loss_is_read(words, tmp_path):
    args = parse([str(word) for word in words])
    (first, *_), _ = planned(args, load_model_shape(args.model))
    write_ladder([first], args)
    measured = train(first, args)
    run = tmp_path / "ladder" / first.name / "run"
    assert is_finished(run)
    last = read_evaluations(run)[-1]["sources"]
    assert measured.bits_per_byte == {source: values["bits_per_byte"] for source, values in last.items()}
    assert set(last) == {"en", "zh"}
    told = (run.parent / "log.txt").read_bytes()
    assert train(first, args) == measured
    assert (run.parent / "log.txt").read_bytes() == told


def keys_of(value) -> set[str]:
    """Of an object and of those in it, without the names of sources."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    inner = set().union(*(keys_of(v) for v in value.values())) if isinstance(value, dict) else set()
    return inner | set(value) - set(LAWS) if isinstance(value, dict) else inner


def test_the_page_lists_every_field_of_the_file(words, tmp_path, trainer):
    call(words, "--target-tokens", "1M")
    record = json.loads((tmp_path / "ladder" / "ladder.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/run_folder.md").read_text(encoding="utf-8").split("\n## ladder.json\n")[1]
    assert keys_of(record) - set(re.findall(r"`(\w+)`", page)) == set()
