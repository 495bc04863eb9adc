"""The fast encoder gives the reference's ids for every document, and yields to it where it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep import encoder, tokenize_corpus
from data_prep.documents import read_documents, write_documents
from data_prep.encoder import SELF_TEST, EncoderMismatch, FastEncoder, ReferenceEncoder, load_encoder
from data_prep.tokenize_corpus import main
from recipe.base.strict import load_json
from recipe.data.indexed import Shard
from tests.conftest import SHARED, needs_shared
from tests.data_prep.test_native import random_texts

TEXTS = [*SELF_TEST, *random_texts(200), "漢" * 5000, "a" * 5000, "\n" * 500, "<|endoftext|><|im_start|>"]


def same(folder, texts) -> bool:
    ids, ends = FastEncoder(folder).encode(texts)
    right, right_ends = ReferenceEncoder(folder).encode(texts)
    return np.array_equal(ids, right) and np.array_equal(ends, right_ends)


def test_both_encoders_agree(prepared):
    assert same(prepared.tokenizer, TEXTS)


@needs_shared
@pytest.mark.slow
def test_both_encoders_agree_on_every_real_document(prepared):
    for path in sorted((SHARED / "corpus").glob("*.jsonl.gz")):
        assert same(prepared.tokenizer, [d["text"] for d in read_documents(path, print)]), path


def test_text_that_looks_like_a_special_token_stays_text(prepared):
    for made in (FastEncoder(prepared.tokenizer), ReferenceEncoder(prepared.tokenizer)):
        ids, _ = made.encode(["<|endoftext|> is only text here"])
        assert 0 not in ids


def test_a_tokenizer_that_the_fast_encoder_does_not_read_is_left_to_the_reference(prepared, tmp_path):
    content = load_json(prepared.tokenizer / "tokenizer.json")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"(?<=a)b|[^b]+"}  # Oniguruma's alone
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    made, why = load_encoder(tmp_path)
    assert (made.name, why is None) in {("tokenizers", False), ("fastokens", True)}
    assert same(tmp_path, TEXTS) if why is None else "fastokens" in why or "other ids" in why


class Wrong(FastEncoder):
    """Right in the self test, wrong for one kind of document."""

    def _encode(self, texts):
        ids, ends = super()._encode(texts)
        return (ids[::-1].copy(), ends) if any("wrong" in text for text in texts) else (ids, ends)


def test_a_part_that_fails_its_check_is_encoded_again_by_the_reference(prepared, tmp_path, monkeypatch, capsys):
    documents = [{"id": str(i), "text": f"right {i} " * 20} for i in range(300)]
    documents.insert(256, {"id": "w", "text": "wrong or right"})
    write_documents(tmp_path / "in.jsonl", documents)
    words = ["--input", tmp_path / "in.jsonl", "--tokenizer", prepared.tokenizer, "--workers", 1]
    assert main([str(w) for w in (*words, "--output", tmp_path / "right")]) == 0
    monkeypatch.setattr(encoder, "FastEncoder", Wrong)
    monkeypatch.setattr(tokenize_corpus, "load_encoder", load_encoder.__wrapped__)
    with pytest.raises(EncoderMismatch):
        Wrong(prepared.tokenizer).encode(["wrong"])
    assert main([str(w) for w in (*words, "--output", tmp_path / "fell-back")]) == 0
    assert "encoded by `tokenizers`, slower, since fastokens gave other ids" in capsys.readouterr().out
    one, other = (load_json(tmp_path / name / "manifest.json")["results"]["shards"] for name in ("right", "fell-back"))
    assert one == other


def test_shards_do_not_depend_on_files_and_are_bounded_and_shuffled(prepared, tmp_path):
    documents = [{"id": f"d{i:04d}", "text": f"document number {i} of many"} for i in range(600)]
    for part in range(3):
        write_documents(tmp_path / "three" / f"{part}.jsonl.gz", documents[part::3])
    write_documents(tmp_path / "one.jsonl", documents[::-1])
    (tmp_path / "tokenize.yaml").write_text("held_out: 0\nmax_shard_tokens: 1000\n")
    shards = []
    for name in ("one.jsonl", "three"):
        words = ["--input", tmp_path / name, "--tokenizer", prepared.tokenizer, "--output", tmp_path / f"out-{name}"]
        assert main([str(w) for w in (*words, "--config", tmp_path / "tokenize.yaml", "--workers", 1)]) == 0
        shards.append(load_json(tmp_path / f"out-{name}" / "manifest.json")["results"]["shards"])
    assert shards[0] == shards[1]
    assert len(shards[0]) > 3
    assert max(s["tokens"] for s in shards[0]) < 1400
    first = [d.tolist() for d in Shard(tmp_path / "out-three" / shards[0][0]["prefix"]).documents()]
    assert first != sorted(first)
