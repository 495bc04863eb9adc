"""Which groups of downstream tasks are scored: those of the languages that are asked for, or of the run's."""

from __future__ import annotations

import argparse

import pytest

from recipe.base.errors import UserError
from recipe.evaluation import downstream_command
from recipe.evaluation.downstream_command import task_names


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"tasks": None, "languages": None, "run": None, "tasks_path": [], **given})


def test_the_groups_of_the_languages_are_taken_unless_tasks_are_named(tmp_path):
    assert task_names(arguments()) == ["downstream_en", "downstream_zh"]
    assert task_names(arguments(languages="de,ja")) == ["downstream_de", "downstream_ja"]
    assert task_names(arguments(languages="de", tasks="piqa,xnli_fr")) == ["piqa", "xnli_fr"]
    (tmp_path / "downstream_fr.yaml").touch()
    assert task_names(arguments(languages="fr", tasks_path=[tmp_path])) == ["downstream_fr"]


def test_a_language_that_is_asked_for_must_have_a_group():
    with pytest.raises(UserError, match=r"no group of tasks for fr: write downstream_fr\.yaml as in"):
        task_names(arguments(languages="en,fr"))


def test_of_a_run_the_languages_that_have_a_group_are_taken(monkeypatch, capsys):
    monkeypatch.setattr(downstream_command, "run_languages", lambda run: ["de", "fr"])
    assert task_names(arguments()) == ["downstream_de"]
    assert "note: there is no group of tasks for fr" in capsys.readouterr().out
    monkeypatch.setattr(downstream_command, "run_languages", lambda run: ["fr"])
    with pytest.raises(UserError, match="no group of tasks for fr"):
        task_names(arguments())
