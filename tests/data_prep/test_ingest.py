"""Sources become documents with their labels, from local files and through `datasets`."""

from __future__ import annotations

import json

import pytest
import yaml

from data_prep.command import CONFIGS
from data_prep.documents import write_documents
from data_prep.ingest import load_sources, main
from recipe.base.errors import ConfigError
from recipe.base.strict import load_json
from tests.conftest import documents_in

LABELS = {"lang": "en", "license": "CC0-1.0", "expected_tokens": 1000.0, "tier": 1}


def run(tmp_path, source, *more):
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": {"mine": {**LABELS, **source}}}))
    words = ["--config", tmp_path / "sources.yaml", "--source", "mine", "--output", tmp_path / "out", "--workers", 1]
    return main([str(word) for word in (*words, *more)])


def test_local_files_by_glob_with_other_field_names(tmp_path):
    for name in ("a", "b"):
        write_documents(tmp_path / "raw" / f"{name}.jsonl.gz", [{"doc": name, "content": f"text {name}", "url": "u"}])
    source = {"files": str(tmp_path / "raw" / "*.jsonl.gz"), "fields": {"id": "doc", "text": "content"}}
    assert run(tmp_path, source) == 0
    assert documents_in(tmp_path / "out") == [
        {"id": f"mine/{n}", "text": f"text {n}", "url": "u", "lang": "en", "source": "mine", "license": "CC0-1.0"}
        for n in ("a", "b")
    ]
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["groups"]["en"]["mine"]["in"] == 2


def test_a_dataset_streamed_with_and_without_ids(tmp_path):
    lines = [json.dumps({"body": f"text {i}", "extra": i}) for i in range(5)]
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, json.dumps({"body": " ", "extra": 5})]) + "\n")
    hub = {"path": "json", "data_files": str(tmp_path / "data.jsonl")}
    assert run(tmp_path, {"hub": hub, "fields": {"text": "body"}}) == 0
    documents = documents_in(tmp_path / "out")
    assert [d["text"] for d in documents] == [f"text {i}" for i in range(5)]
    assert documents[3] == {
        "id": "mine/00000/000000003", "text": "text 3", "lang": "en", "source": "mine", "license": "CC0-1.0",
    }  # fmt: skip
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["bad_records"] == 1


def test_a_trial_takes_a_few_documents_of_each_part(tmp_path):
    write_documents(tmp_path / "x.jsonl", [{"id": str(i), "text": "t"} for i in range(50)])
    assert run(tmp_path, {"files": str(tmp_path / "x.jsonl")}, "--limit", 3) == 0
    assert len(documents_in(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "give exactly one of 'hub' and 'files'"),
        ({"files": "x", "hub": {"path": "y"}}, "give exactly one of 'hub' and 'files'"),
        ({"files": "x", "tier": 9}, "'sources.mine.tier' is 9"),
        ({"files": "nowhere/*.jsonl"}, "match nothing"),
        ({"hub": {"path": "json", "data_files": "nowhere.jsonl"}}, "cannot be opened"),
    ],
)
def test_a_source_that_cannot_work_is_told(tmp_path, capsys, source, said):
    assert run(tmp_path, source) == 2
    assert said in capsys.readouterr().err


def test_a_source_of_another_name_is_told(tmp_path, capsys):
    words = ["--config", CONFIGS / "sources.yaml", "--source", "wikipedia-e", "--output", tmp_path / "out"]
    assert main([str(w) for w in words]) == 2
    assert "did you mean 'wikipedia-en'?" in capsys.readouterr().err


def test_the_shipped_sources_are_sound_and_cover_the_run():
    sources = load_sources(CONFIGS / "sources.yaml")
    for lang in ("en", "zh"):
        assert sum(s.expected_tokens for s in sources.values() if s.lang == lang) > 5e11
    assert {s.tier for s in sources.values()} == {1, 2, 3}
    with pytest.raises(ConfigError):
        load_sources(CONFIGS / "curate.yaml")
