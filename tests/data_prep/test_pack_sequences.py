"""Packing a token folder: each token once, documents whole where they fit, the same bytes whoever works, and sound refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import report
from data_prep.pack_sequences import main
from data_prep.packing.sequences import pieces_of
from recipe.base.files import sha256, write_json
from recipe.base.strict import load_json
from recipe.data.indexed import SUFFIXES, ShardWriter, token_dtype
from recipe.data.token_folder import TokenFolder, packed_otherwise
from tests.data_prep.job_server import run_job
from tests.data_prep.test_jobs import contents

VOCAB, EOD = 300, 0
Lengths = Mapping[str, Sequence[Sequence[int]]]  # of the documents of each shard, by source


def write_shards(folder: Path, split: str, lengths: Lengths, rng: np.random.Generator) -> list[dict[str, Any]]:
    entries = []
    for source, shards in lengths.items():
        for number, documents in enumerate(shards):
            prefix = f"shards/{split}/{source}/{number:05d}"
            writer = ShardWriter(folder / prefix, token_dtype(VOCAB), VOCAB)
            for length in documents:
                writer.add_document(np.append(rng.integers(1, VOCAB, length - 1), EOD))
            writer.close()
            tokens = sum(documents)
            entries.append({
                "prefix": prefix, "split": split, "source": source, "documents": len(documents), "tokens": tokens,
                "text_bytes": 3 * tokens, "sha256": {suffix: sha256(folder / f"{prefix}{suffix}") for suffix in SUFFIXES},
            })  # fmt: skip
    return entries


@pytest.fixture
def tokens(tmp_path) -> Path:
    """A folder of tokens: two shards of en, one of zh, one held out."""
    rng = np.random.default_rng(5)
    draw = lambda n: np.clip(rng.lognormal(3.2, 1.1, n).astype(int), 2, 300).tolist()  # noqa: E731
    folder = tmp_path / "tokens"
    shards = write_shards(folder, "train", {"en": [draw(300), draw(250)], "zh": [draw(200)]}, rng)
    shards += write_shards(folder, "held_out", {"en": [draw(9)]}, rng)
    facts = {"sha256": "0" * 64, "vocab_size": VOCAB, "eod_id": EOD, "pad_id": None}
    licenses = {"en": {"MIT": 1000}, "zh": {"not stated": 500}}
    write_json(folder / "stage.json", {"schema": "data_prep.stage"})
    results = {"tokenizer": facts, "shards": shards, "licenses": licenses}
    write_json(folder / "manifest.json", {"stage": "tokenize", "version": 3, "counts": {}, "results": results})
    return folder


@pytest.fixture
def pack(tokens, tmp_path):
    """Runs the job, and gives its exit code and its output folder."""

    def run(output: str = "out", source: Path = tokens, **config: Any) -> tuple[int, Path]:
        path = tmp_path / f"{output.replace('/', '_')}.yaml"
        path.write_text(json.dumps({"seq_length": 64, **config}))
        words = ["--input", source, "--output", tmp_path / output, "--config", path, "--workers", 1]
        return main([str(word) for word in words]), tmp_path / output

    return run


def documents_of(folder: Path, split: str = "train") -> dict[str, list[list[int]]]:
    """The documents of each source, in their order, shard by shard."""
    sources = TokenFolder(folder).sources(split)  # type: ignore[arg-type]
    return {s.name: [d.tolist() for shard in s.shards for d in shard.documents()] for s in sources}


def test_each_document_is_there_once_and_those_that_fit_are_whole(pack, tokens):
    code, output = pack()
    assert code == 0
    before, after = documents_of(tokens), documents_of(output)
    assert {name: sorted(d) for name, d in after.items()} == {name: sorted(d) for name, d in before.items()}
    packing = load_json(output / "manifest.json")["results"]["packing"]
    assert packing["seq_length"] == 64
    for name, facts in packing["sources"].items():
        lengths = [shard.lengths for s in TokenFolder(output).sources("train", [name]) for shard in s.shards]
        pieces = np.concatenate([pieces_of(n, 64)[n <= 64] for n in lengths])
        assert facts["after"]["documents_cut"] == (pieces > 1).sum()
        assert facts["after"]["documents_cut"] <= 1
        assert facts["before"]["documents_cut"] > 40
        tokens_of = TokenFolder(output).sizes("train")[name]
        assert facts["sequences"] * 64 + facts["tokens_in_no_sequence"] == tokens_of


def test_the_manifest_has_what_training_and_reports_read(pack, tokens, tmp_path):
    output = pack()[1]
    given, manifest = load_json(tokens / "manifest.json"), load_json(output / "manifest.json")
    assert manifest["results"]["tokenizer"] == given["results"]["tokenizer"]
    assert manifest["results"]["licenses"] == given["results"]["licenses"]
    assert manifest["parent"] == {"stage": "tokenize", "manifest_sha256": sha256(tokens / "manifest.json")}
    assert (manifest["counts"]["in"], manifest["counts"]["out"]) == (759, 759)
    totals = manifest["counts"]["totals"]["train"]["zh"]
    assert totals["text_bytes"] == 3 * totals["tokens"]
    assert report.main([str(output), "--output", str(tmp_path / "data.html")]) == 0
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert "zh: of the documents that fit 64 tokens, " in page
    assert "Length of packed documents, en" in page


def test_held_out_shards_stay_as_they_are(pack, tokens):
    output = pack(sources={"zh": {}})[1]
    assert contents(output / "shards" / "held_out") == contents(tokens / "shards" / "held_out")
    assert list(documents_of(output)) == ["zh"]


def test_sources_and_lengths_are_taken_as_asked(pack, tokens):
    sources = {"en": {"tokens": 4000, "lengths": {32: 0.75, 8: 0.25}}}
    output = pack(sources=sources)[1]
    lengths = np.array([len(d) for d in documents_of(output)["en"]])
    assert lengths.min() >= 8
    assert lengths[lengths >= 32].sum() == pytest.approx(3000, abs=300)
    assert lengths[lengths < 32].sum() == pytest.approx(1000, abs=32)
    manifest = load_json(output / "manifest.json")
    assert set(manifest["counts"]["dropped"]) == {"source_left_out", "too_few_tokens", "not_taken"}
    assert manifest["counts"]["dropped"]["source_left_out"] == 200
    assert manifest["counts"]["in"] == manifest["counts"]["out"] + sum(manifest["counts"]["dropped"].values())
    shards = manifest["results"]["shards"]
    assert [shard["prefix"] for shard in shards if shard["split"] == "train"] == ["shards/train/en/00000"]


def test_workers_and_a_second_run_change_nothing(pack, tokens, tmp_path):
    reference = contents(pack("one", max_shard_tokens=9000)[1])
    words = ["data_prep/pack_sequences.py", "--input", tokens, "--output", tmp_path / "two"]
    for _ in range(2):
        done = run_job(*words, "--config", tmp_path / "one.yaml", "--workers", 2)
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / "two") == reference


def test_a_packed_folder_can_be_packed_for_another_length(pack, tokens):
    output = pack("short")[1]
    code, again = pack("long", source=output, seq_length=128)
    assert code == 0
    assert sorted(documents_of(again)["en"]) == sorted(documents_of(tokens)["en"])


def test_a_run_with_another_length_is_told(pack, tokens):
    folder = TokenFolder(pack()[1])
    assert packed_otherwise(folder, 64) == ""
    assert packed_otherwise(TokenFolder(tokens), 32) == ""
    assert "was packed for sequences of 64 tokens, and data.seq_length is 32" in packed_otherwise(folder, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq_length": 1}, "seq_length"),
        ({"sources": {"fr": {}}}, "sources names fr, which"),
        ({"sources": {"en": {"tokens": 10**9}}}, "lower sources.en.tokens or change lengths"),
        ({"source": "missing"}, "has no manifest.json"),
        ({"source": "other"}, "is not of tokenize_corpus.py, import_shards.py or pack_sequences.py"),
        ({"output": "thesis"}, "holds files of something else"),
        ({"output": "tokens/out"}, "lies in --input"),
    ],
    ids=["seq_length 1", "unknown source", "too many tokens", "no folder", "no token folder", "occupied", "inside"],
)
def test_what_cannot_work_ends_in_one_sentence(given, message, pack, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "manifest.json", {"stage": "curate"})
    if "source" in given:
        given = {**given, "source": tmp_path / given["source"]}
    code, output = pack(**given)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (output / "manifest.json").exists()


def test_a_damaged_shard_is_named(pack, tokens, capsys):
    path = tokens / "shards" / "train" / "en" / "00001.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
    assert pack()[0] == 2
    assert f"{path} is not what {tokens / 'manifest.json'} lists; restore it" in capsys.readouterr().err


def test_an_input_that_changed_is_not_gone_on_with(pack, tokens, capsys):
    assert pack()[0] == 0
    manifest = load_json(tokens / "manifest.json")
    write_json(tokens / "manifest.json", {**manifest, "code_version": "another"})
    assert pack()[0] == 2
    assert "was made with other parent" in capsys.readouterr().err
