"""The benchmark compares like with like: every contender trains the same model on the same tokens."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType

import pytest

from tests.conftest import ROOT, run_python

SCRIPT = "benchmarks/train_step.py"


@pytest.fixture
def train_step(monkeypatch) -> ModuleType:
    """The script as a module; as a script it puts the project's folder first on the path."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    from benchmarks import train_step

    return train_step


@pytest.mark.slow
def test_all_contenders_train_the_same_model(tmp_path):
    output = tmp_path / "result.json"
    done = run_python(
        SCRIPT, "--layers", 2, "--steps", 2, "--seq", 64, "--micro-batch", 2, "--output", output, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text())
    assert json.loads(done.stdout) == result
    contenders = result["contenders"]
    assert {name: measured["failed"] for name, measured in contenders.items() if "failed" in measured} == {}
    assert {"Megatron-Core", "transformers, AdamW loop", "ours, ZeRO-1"} <= contenders.keys()
    for name, measured in contenders.items():
        assert measured["parameters"] == result["case"]["parameters"], name
        assert measured["first_loss"] == pytest.approx(math.log(4096), abs=0.1), name  # nothing is known yet
        assert measured["last_loss"] < measured["first_loss"], name
        parts, wall = measured["breakdown"]["part_s"], measured["breakdown"]["wall_s"]
        assert sum(s for kinds in parts.values() for s in kinds.values()) == pytest.approx(wall, rel=0.05), name
        assert {"attention", "experts", "router", "head and loss", "optimizer"} <= parts.keys(), name
    printed = run_python(SCRIPT, "--table", output)
    assert printed.returncode == 0, printed.stderr
    assert all(name in printed.stdout for name in contenders)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--layers", 1), "--layers 1 must be between 2 and 4"),
        (("--seq", 100_000), "exceeds the model's"),
        (("--output", "nowhere/x.json"), "there is no folder nowhere"),
        (("--model", "nowhere"), "nowhere"),
        (("--only", "Caffe"), "invalid choice"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(words, sentence, train_step, capsys):
    try:
        code = train_step.main([str(word) for word in words])
    except SystemExit as end:  # argparse's
        code = end.code
    assert code == 2
    assert sentence in capsys.readouterr().err


def test_the_command_itself_refuses_without_a_traceback():
    done = run_python(SCRIPT, "--layers", 1)
    assert done.returncode == 2
    assert "--layers 1 must be between 2 and 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_contender_that_fails_is_reported_and_the_table_says_why(train_step, tmp_path, capsys):
    committed = json.loads((ROOT / "benchmarks/results/train_step.json").read_text())
    committed["contenders"]["Megatron-Core"] = {"failed": "OutOfMemoryError: tried to allocate"}
    (tmp_path / "result.json").write_text(json.dumps(committed))
    train_step.main(["--table", str(tmp_path / "result.json")])
    assert "| Megatron-Core | OutOfMemoryError: tried to allocate |" in capsys.readouterr().out
