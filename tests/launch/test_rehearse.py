"""Every shipped ds_config, rehearsed as its cluster's rank 0."""

from __future__ import annotations

import json

import pytest

from launch import rehearse as script
from recipe.planner.search import shipped
from tests.conftest import ROOT, run_forked, run_python

MODELS = ROOT / "recipe/configs/models"


def rehearse(*words: object, **options):
    return run_forked("launch/rehearse.py", *words, **options)


@pytest.mark.distributed
def test_the_quickstarts_ds_config_is_rehearsed():
    done = rehearse("--ds-config", "ds_configs/cpu_2.json", "--model", MODELS / "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut to fit this machine: 2 of 4 layers" in done.stdout
    assert "the engine does what is planned" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("config", shipped.SHIPPED, ids=lambda s: s.name)
def test_every_shipped_ds_config_does_what_is_planned(config):
    recompute = shipped.chosen(config).plan.work.run.recompute
    done = rehearse(
        "--ds-config", config.path, "--model", MODELS / config.model, "--recompute", recompute, "--world", config.gpus,
        "--vocab", 512, "--seq", 8, "--json", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["agrees"] is True
    assert report["groups"]["world"] == config.gpus


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ds_configs/nope.json", "--model", MODELS / "tiny"), "nope.json"),
        (("ds_configs/a100_256.json", "--model", MODELS / "30b-a3b", "--world", 64), "launch 256"),
        (("ds_configs/cpu_2.json", "--model", MODELS / "tiny", "--layers", 1), "between 2 and"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_in_a_sentence(words, sentence, capsys):
    assert script.main(["--ds-config", *map(str, words)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_itself_refuses_without_a_traceback():
    done = run_python("launch/rehearse.py", "--ds-config", "ds_configs/nope.json", "--model", MODELS / "tiny")
    assert done.returncode == 2
    assert "nope.json" in done.stderr
    assert "Traceback" not in done.stderr
