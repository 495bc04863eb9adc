"""Which groups of downstream tasks are scored: those of the languages that are asked for, or of the run's."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data_prep import tokenize_corpus
from data_prep.documents.reading import write_documents
from data_prep.train_tokenizer import TokenizerConfig, train, write_folder
from recipe.base.errors import UserError
from recipe.base.settings import RunConfig
from recipe.evaluation.downstream import command as downstream_command
from recipe.evaluation.downstream.command import task_names
from recipe.run.folder import record_start


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


def started_run(folder: Path, **settings: str) -> Path:
    """The folder of a run that has started, on tokens of two sentences."""
    texts = {"de": "Der Fluss trat im Frühjahr über die Ufer.", "ja": "川は春に岸を越えた。"}
    rows = [{"id": language, "text": text, "lang": language, "source": "web"} for language, text in texts.items()]
    write_documents(folder / "documents" / "a.jsonl", rows)
    tokenizer = TokenizerConfig(vocab_size=300, reserved_tokens=0)
    write_folder(train(iter(texts.values()), tokenizer), tokenizer, folder / "tokenizer")
    (folder / "tokenize.yaml").write_text(yaml.safe_dump({"held_out": 0.0, **settings}), encoding="utf-8")
    words = ("--input", folder / "documents", "--tokenizer", folder / "tokenizer", "--output", folder / "tokens",
             "--config", folder / "tokenize.yaml", "--workers", 1)  # fmt: skip
    assert tokenize_corpus.main([str(word) for word in words]) == 0
    run = {
        "run_dir": folder / "run",
        "model": "model",
        "tokenizer": folder / "tokenizer",
        "data": {"tokens": folder / "tokens", "seq_length": 8},
        "schedule": {"total_tokens": 1000, "peak_lr": 1e-3, "min_lr": 1e-4, "warmup_tokens": 0},
        "checkpoint": {"every_steps": 10},
    }
    config = RunConfig.model_validate(run)
    job: Any = SimpleNamespace(run=config, config=config, ds_config={}, data=SimpleNamespace(facts=[]), identity={})
    record_start(job)
    return folder / "run"


@pytest.mark.parametrize(
    ("source_by", "groups"),
    [("lang", ["downstream_de", "downstream_ja"]), ("source", ["downstream_en", "downstream_zh"])],
    ids=["by language", "by source"],
)
def test_the_languages_of_a_run_are_those_of_its_tokens(source_by, groups, tmp_path):
    """Where its sources are not named by languages, the default ones are taken."""
    assert task_names(arguments(run=started_run(tmp_path, source_by=source_by))) == groups
