"""Tokenizer training draws languages by temperature; its evaluation counts what it says."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import xxhash
from tokenizers import Tokenizer

from data_prep.core.stage import Stage
from data_prep.documents.reading import write_documents
from data_prep.evaluate_tokenizer import main, measure_part
from data_prep.tokenization.encoder import ReferenceEncoder
from data_prep.train_tokenizer import TokenizerConfig, draw_sample, language_budgets, read_texts, threads
from recipe.base.errors import UserError
from recipe.base.strict import load_json, load_yaml
from tests.conftest import ROOT


def test_languages_are_drawn_by_temperature_and_what_one_lacks_goes_to_the_others():
    sizes = {"en": 900, "zh": 100}
    assert language_budgets(sizes, 100, 1.0) == {"en": 90, "zh": 10}
    assert language_budgets(sizes, 100, 0.5) == {"en": 75, "zh": 25}
    assert language_budgets(sizes, 400, 0.0) == {"zh": 100, "en": 300}
    assert language_budgets(sizes, 10_000, 0.5) == {"en": 900, "zh": 100}


class Backwards:
    """An engine that runs the last task first, and stops after so many."""

    def __init__(self, most: int = 99):
        self._left, self.ran = most, 0

    def run(self, function, tasks, workers, title):
        for number, task in reversed(tasks):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.ran += 1
            yield number, function(task, number)


def plainly_drawn(documents, config) -> list[str]:
    """The sample as one process draws it from all documents in their order."""
    totals = Counter()
    for document in documents:
        totals[document["lang"]] += len(document["text"].encode())
    budgets = language_budgets(totals, config.sample_bytes, config.alpha)
    chances = {lang: budgets[lang] / totals[lang] * 2**64 for lang in totals}
    keys = (xxhash.xxh3_64_intdigest(d["id"].encode(), seed=20_260_103) for d in documents)
    return [d["text"] for d, key in zip(documents, keys, strict=True) if key < chances[d["lang"]]]


def test_the_sample_is_spread_over_the_input_and_does_not_depend_on_its_files_or_engine(tmp_path):
    documents = [
        {"id": f"{lang}{i}", "text": f"{i} " + "x船" * 25, "lang": lang}
        for lang, n in (("en", 900), ("zh", 100))
        for i in range(n)
    ]
    config = TokenizerConfig(vocab_size=300, sample_bytes=40_000, alpha=0.5)
    right = plainly_drawn(documents, config)
    for files, engine in ((1, None), (4, None), (4, Backwards())):
        for part in range(files):
            first = part * 1000 // files
            write_documents(tmp_path / f"in{files}" / f"{part}.jsonl", documents[first : first + 1000 // files])
        output = tmp_path / f"out{files}{engine is None}"
        stage = Stage("train_tokenizer", tmp_path / f"in{files}", output, {}, engine=engine)
        paths, counts = draw_sample(stage, config)
        assert [text for path in paths for text in read_texts(path)] == right
        assert (counts["in"], counts["out"], counts["bad_records"]) == (1000, len(right), 0)
        assert counts["bytes"]["en"] == pytest.approx(30_000, abs=4000)
        assert counts["bytes"]["zh"] == pytest.approx(10_000, abs=400)


def test_a_sample_that_was_interrupted_goes_on(tmp_path):
    documents = [{"id": str(i), "text": f"text {i}"} for i in range(40)]
    for part in range(4):
        write_documents(tmp_path / "in" / f"{part}.jsonl", documents[part * 10 : part * 10 + 10])
    config = TokenizerConfig(vocab_size=300, sample_bytes=200)

    def paths_after(engine):
        return draw_sample(Stage("train_tokenizer", tmp_path / "in", tmp_path / "out", {}, engine=engine), config)[0]

    first, second, third = Backwards(3), Backwards(3), Backwards(3)
    for engine in (first, second):
        with pytest.raises(KeyboardInterrupt):
            paths_after(engine)
        gc.collect()  # the stage that was interrupted, which has the folder
    paths = paths_after(third)
    assert (first.ran, second.ran, third.ran) == (3, 3, 2)  # each of four parts is counted once and drawn once
    drawn = [text for path in paths for text in read_texts(path)]
    assert drawn == plainly_drawn([{**d, "lang": "unknown"} for d in documents], config)


def test_training_takes_its_workers_as_threads_and_leaves_the_environment(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with threads(3):
        assert (os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]) == ("3", "true")
    assert os.environ["RAYON_NUM_THREADS"] == "1"
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_sample_without_documents_is_refused(tmp_path):
    write_documents(tmp_path / "in.jsonl", [{"id": "a", "text": "x" * 1000}])
    stage = Stage("train_tokenizer", tmp_path / "in.jsonl", tmp_path / "out", {})
    with pytest.raises(UserError, match="sample_bytes 1 draws none of the 1 documents; raise it"):
        draw_sample(stage, TokenizerConfig(vocab_size=300, sample_bytes=1))


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
    encoder = ReferenceEncoder(prepared.tokenizer)
    assert results["fertility"][str(prepared.tokenizer)] == {
        lang: {
            "web": {
                "documents": 1,
                "bytes": len(text.encode()),
                "characters": len(text),
                "tokens": len(encoder.encode([text])[0]),
                "round_trip_failures": 0,
            }
        }
        for lang, text in texts.items()
    }
    vocabulary = results["vocabulary"]
    assert sum(vocabulary["by_script"].values()) == vocabulary["vocab_size"] == 1024
    assert vocabulary["by_script"]["special"] == 9
    assert vocabulary["by_script"]["han"] > 50 < vocabulary["by_script"]["latin"]
    assert 900 < vocabulary["unused"] < 1015
    assert "0 documents are changed by encoding and decoding" in capsys.readouterr().out


def test_what_is_used_does_not_depend_on_files_nor_on_holes_in_the_ids(prepared, tmp_path):
    content = load_json(prepared.tokenizer / "tokenizer.json")
    content["model"]["vocab"]["never"] = 70_000
    (tmp_path / "hole").mkdir()
    (tmp_path / "hole" / "tokenizer.json").write_text(json.dumps(content))
    documents = [{"id": str(i), "text": text} for i, text in enumerate(("The old ship", "清晨，青石镇", "2026"))]
    write_documents(tmp_path / "in1" / "a.jsonl", documents)
    for document in documents:
        write_documents(tmp_path / "in3" / f"{document['id']}.jsonl", [document])
    vocabulary = {}
    for tokenizer, source in ((prepared.tokenizer, "in1"), (tmp_path / "hole", "in1"), (tmp_path / "hole", "in3")):
        output = tmp_path / f"{tokenizer.name}-{source}"
        words = ["--input", tmp_path / source, "--tokenizer", tokenizer, "--output", output, "--workers", 1]
        assert main([str(w) for w in words]) == 0
        vocabulary[output.name] = load_json(output / "manifest.json")["results"]["vocabulary"]
        assert {path.name for path in output.iterdir()} == {
            ".lock",
            "stage.json",
            "manifest.json",
            "table.txt",
            "tasks",
        }
    used = {token for d in documents for token in Tokenizer.from_str(json.dumps(content)).encode(d["text"]).ids}
    assert vocabulary["tokenizer-in1"]["unused"] == 1024 - 9 - len(used)
    assert vocabulary["hole-in1"]["unused"] == vocabulary["tokenizer-in1"]["unused"] + 1
    assert vocabulary["hole-in3"] == vocabulary["hole-in1"]


def test_a_large_id_that_no_text_has_costs_nothing(prepared, tmp_path):
    content = load_json(prepared.tokenizer / "tokenizer.json")
    content["model"]["vocab"]["never"] = 2**31 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    documents = [{"id": str(number), "text": "The old ship"} for number in range(600)]
    measure_part(documents, 7, folders=[tmp_path], used=tmp_path / "used")
    (path,) = (tmp_path / "used").iterdir()
    encoded = ReferenceEncoder(tmp_path).encode(["The old ship"])[0]
    assert np.load(path).tolist() == sorted(set(encoded.tolist()))


def test_a_folder_that_transformers_does_not_load_is_named_before_anything_is_read(prepared, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vocab.txt").touch()
    words = ["--input", prepared.deduped, "--tokenizer", prepared.tokenizer, "--output", tmp_path / "out"]
    assert main([str(w) for w in (*words, "--compare", tmp_path / "other")]) == 2
    assert f"transformers loads no tokenizer from {tmp_path / 'other'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    assert "is not a folder; give the folder of a tokenizer" in capsys.readouterr().err
    assert Counter(p.name for p in tmp_path.iterdir()) == {}


def test_a_config_may_leave_out_all_but_the_vocabulary():
    shipped = load_yaml(ROOT / "data_prep/configs/tokenizer.yaml")
    given = TokenizerConfig(vocab_size=shipped["vocab_size"]).model_dump()
    for key in ("sample_bytes", "alpha", "digits", "eod_token", "pad_token"):
        assert given[key] == shipped[key]
