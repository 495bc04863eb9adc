"""The check of clients: what it is given wrongly is told at once, and an environment is there whole or not at all."""

from __future__ import annotations

import json
import subprocess

import pytest

from recipe.base.errors import UserError
from tests.clients import check
from tests.clients.check import CLIENTS, HERE, ROOT, main, overlay, parse, python_of, table

ROW = {
    "client": "TRL",
    "version": "1",
    "model": "a",
    "done": "8 steps",
    "when": "2026-01-01",
    "verdict": "right",
    "result": "loss 2 → 1",
}


@pytest.fixture
def commands(monkeypatch):
    """The commands that would be run; none is. One that has a word of `fails` fails."""
    run, fails = [], []

    def record(command, **_):
        run.append([str(word) for word in command])
        if set(run[-1]) & set(fails):
            raise subprocess.CalledProcessError(1, run[-1])

    monkeypatch.setattr(check.subprocess, "run", record)
    return run, fails


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"rows": [{}], "controls": []}', '{"rows": {}, "controls": []}']
)
def test_a_file_that_is_no_result_is_one_message(content, tmp_path, capsys):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    assert main(["--table", str(path)]) == 2
    assert f"error: {path} " in capsys.readouterr().err
    if content is not None:  # before anything is trained
        assert main(["--output", str(path), "--envs", str(tmp_path / "envs")]) == 2
        assert f"error: {path} " in capsys.readouterr().err
        assert not (tmp_path / "envs").exists()


def test_rows_of_a_client_that_is_none_any_more_are_named(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"rows": [{**ROW, "client": "older"}], "controls": []}))
    assert main(["--table", str(path)]) == 2
    assert "has rows of 'older', which is no client of this check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "config.json does not exist"),
        ({"config.json": "[1]"}, "has the model_type None"),
        ({"config.json": '{"model_type": "llama"}'}, "has the model_type llama"),
        ({"config.json": '{"model_type": "mixtral"}'}, "holds no tokenizer.json"),
        ({"config.json": '{"model_type": "mixtral"}', "tokenizer.json": "{}"}, "holds no model.safetensors"),
    ],
)
def test_a_folder_that_is_no_export_is_refused_before_an_environment_is_made(files, message, tmp_path, capsys):
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert main(["--model", str(folder), "--envs", str(tmp_path / "envs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "envs").exists()


def test_the_environments_are_where_make_has_them():
    assert parse([]).envs == ROOT / ".venv-clients"
    recipe = (ROOT / "Makefile").read_text().split("\nclients:")[1].split("\n\n")[0]
    assert "tests/clients/check.py" in recipe
    assert "--envs" not in recipe


def test_every_environment_has_its_requirements():
    for client in CLIENTS:
        assert client.environment is None or (HERE / "requirements" / f"{client.environment}.txt").is_file(), client


def test_what_does_not_fit_a_torch_for_cpus_is_removed(commands, tmp_path):
    run, _ = commands
    python = python_of(tmp_path, "vllm")
    requirements = HERE / "requirements"
    assert [command[3:4] + command[6:] for command in run[1:]] == [
        ["install", "--requirement", str(requirements / "vllm.txt")],
        ["uninstall", "--yes", "--requirement", str(requirements / "vllm.without.txt")],
    ]
    assert all(command[0] == str(python) for command in run[1:])


def test_an_environment_that_could_not_be_made_is_no_answer_of_the_client(commands, tmp_path):
    _, fails = commands
    fails.append("install")
    (tmp_path / "tf4").mkdir()
    with pytest.raises(UserError, match="tf4 could not be made, by python -m pip install"):
        python_of(tmp_path, "tf4")
    assert not (tmp_path / "tf4").exists()
    with pytest.raises(UserError, match="overlay could not be made"):
        overlay(tmp_path / "overlay", ["a==1"])
    assert not (tmp_path / "overlay").exists()


def test_the_table_says_which_model_was_damaged_and_who_was_given_none():
    damaged = {
        **ROW,
        "client": "llama.cpp",
        "model": "a, swapped",
        "control": "swapped",
        "caught": False,
        "result": "0, same text",
    }
    printed = table({"rows": [{**ROW, "client": "llama.cpp"}, ROW], "controls": [damaged]})
    assert "0 of 1 damaged copies caught:" in printed
    assert "| swapped | a | llama.cpp | not caught |" in printed
    assert "Clients that were given no damaged copy: TRL." in printed
