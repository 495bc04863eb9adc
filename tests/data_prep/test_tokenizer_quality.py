"""Tokenizer training draws languages by temperature; its evaluation counts what it says."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from data_prep.documents import write_documents
from data_prep.evaluate_tokenizer import main
from data_prep.stage import Stage
from data_prep.train_tokenizer import Sample, TokenizerConfig, language_budgets
from recipe.base.strict import load_json


def test_languages_are_drawn_by_temperature_and_what_one_lacks_goes_to_the_others():
    sizes = {"en": 900, "zh": 100}
    assert language_budgets(sizes, 100, 1.0) == {"en": 90, "zh": 10}
    assert language_budgets(sizes, 100, 0.5) == {"en": 75, "zh": 25}
    assert language_budgets(sizes, 400, 0.0) == {"zh": 100, "en": 300}
    assert language_budgets(sizes, 10_000, 0.5) == {"en": 900, "zh": 100}


def test_the_sample_is_spread_over_the_input_and_does_not_depend_on_its_files(tmp_path):
    documents = [
        {"id": f"{lang}{i}", "text": "x" * 100, "lang": lang}
        for lang, n in (("en", 900), ("zh", 100))
        for i in range(n)
    ]
    config = TokenizerConfig(vocab_size=300, sample_bytes=40_000, alpha=0.5)
    drawn = []
    for files in (1, 4):
        for part in range(files):
            write_documents(tmp_path / f"in{files}" / f"{part}.jsonl", documents[part::files])
        sample = Sample(Stage("train_tokenizer", tmp_path / f"in{files}", tmp_path / f"out{files}", {}), config)
        assert len(list(sample)) == sample.used.total()
        assert sample.read == 1000
        drawn.append(sample.used)
    assert drawn[0] == drawn[1]
    assert drawn[0]["en"] == pytest.approx(300, abs=50)
    assert drawn[0]["zh"] == pytest.approx(100, abs=1)


def test_fertility_unused_tokens_and_round_trips_are_counted(prepared, tmp_path, capsys):
    texts = {"en": "The old ship of the harbour.", "zh": "清晨，青石镇的船长看着潮水。"}
    write_documents(tmp_path / "in.jsonl", [{"id": k, "text": t, "lang": k, "source": "web"} for k, t in texts.items()])
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--compare", prepared.tokenizer)]) == 2
    assert "names a tokenizer twice" in capsys.readouterr().err
    shutil.copytree(prepared.tokenizer, tmp_path / "other")
    assert main([str(w) for w in (*words, "--compare", tmp_path / "other", "--workers", 1)]) == 0
    results = load_json(tmp_path / "out" / "manifest.json")["results"]
    assert results["fertility"][str(tmp_path / "other")] == {
        lang: {source: {**n, "round_trip_failures": 0} for source, n in sources.items()}
        for lang, sources in results["fertility"][str(prepared.tokenizer)].items()
    }
    english = results["fertility"][str(prepared.tokenizer)]["en"]["web"]
    assert (english["bytes"], english["characters"]) == (len(texts["en"]), len(texts["en"]))
    assert english["round_trip_failures"] == 0
    vocabulary = results["vocabulary"]
    assert sum(vocabulary["by_script"].values()) == vocabulary["vocab_size"] == 1024
    assert vocabulary["by_script"]["special"] == 9
    assert vocabulary["by_script"]["han"] > 50 < vocabulary["by_script"]["latin"]
    assert 900 < vocabulary["unused"] < 1015
    assert "0 documents come back changed" in capsys.readouterr().out


def test_a_tokenizer_that_changes_text_is_found_out(prepared, tmp_path):
    content = load_json(prepared.tokenizer / "tokenizer.json")
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "tokenizer.json").write_text(json.dumps(content))
    write_documents(tmp_path / "in.jsonl", [{"id": "a", "text": "The Ship"}, {"id": "b", "text": "the ship"}])
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", tmp_path / "lower", "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--workers", 1)]) == 0
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["round_trip_failures"] == 1


def test_a_folder_without_a_tokenizer_is_refused(prepared, tmp_path, capsys):
    words = ["--input", prepared.deduped, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--tokenizer", tmp_path)]) == 2
    assert "holds no tokenizer.json" in capsys.readouterr().err
    assert main([str(w) for w in (*words, "--tokenizer", prepared.tokenizer, "--compare", tmp_path / "no")]) == 2
    assert "is no folder of a tokenizer" in capsys.readouterr().err
    assert Counter(p.name for p in tmp_path.iterdir()) == {}
