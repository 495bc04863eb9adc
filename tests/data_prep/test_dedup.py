"""Duplicates: what is planted is found, nothing else is, and the result depends on the documents alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep.dedup import main
from data_prep.documents import write_documents
from data_prep.minhash import MinHash, candidate_pairs, connected_components
from recipe.base.strict import load_json
from tests.conftest import SHARED, documents_in, needs_shared, run_python


def run(tmp_path, documents, name="out", files=1):
    source = tmp_path / f"{name}-in"
    for part in range(files):
        write_documents(source / f"{part}.jsonl", documents[part::files])
    assert main(["--input", str(source), "--output", str(tmp_path / name), "--workers", "1"]) == 0
    return documents_in(tmp_path / name)


def document(identity: str, text: str) -> dict[str, str]:
    return {"id": identity, "text": text, "lang": "en"}


WORDS = [f"word{i}" for i in range(300)]
TEXT = " ".join(WORDS)


def test_exact_and_near_duplicates_go_and_the_longest_stays(tmp_path):
    near = TEXT.replace("word150", "other") + " tail"
    unrelated = " ".join(reversed(WORDS))
    kept = run(
        tmp_path, [document("b", TEXT), document("a", TEXT.upper()), document("c", near), document("d", unrelated)]
    )
    assert [d["id"] for d in kept] == ["c", "d"]
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["dropped"] == {"near_duplicate": 2}
    assert load_json(tmp_path / "out" / "clusters.json") == [
        {"kept": "c", "dropped": [["a", "near_duplicate"], ["b", "near_duplicate"]]}
    ]


def test_of_equally_long_ones_the_smallest_id_stays(tmp_path):
    kept = run(tmp_path, [document("b", TEXT), document("a", TEXT.upper()), document("c", TEXT)])
    assert [d["id"] for d in kept] == ["a"]
    assert load_json(tmp_path / "out" / "manifest.json")["counts"]["dropped"] == {"exact_duplicate": 2}


def test_short_different_texts_are_no_duplicates(tmp_path):
    assert len(run(tmp_path, [document(str(i), f"only {i}") for i in range(50)])) == 50


def test_the_result_depends_on_the_documents_alone(prepared, tmp_path):
    documents = documents_in(prepared.curated)
    one = {d["id"] for d in run(tmp_path, documents, "one", files=1)}
    many = {d["id"] for d in run(tmp_path, documents[::-1], "many", files=5)}
    assert one == many


def test_planted_duplicates_are_caught_and_nothing_else(prepared):
    planted = load_json(prepared.raw / "planted.json")
    curated = {d["id"] for d in documents_in(prepared.curated)}
    kept = {d["id"] for d in documents_in(prepared.deduped)}
    pairs = {(i, p["of"]) for i, p in planted.items() if "of" in p and {i, p["of"]} <= curated}
    caught = sum(not ({i, of} <= kept) for i, of in pairs)
    assert caught / len(pairs) > 0.9
    assert curated - kept <= {identity for pair in pairs for identity in pair}


@pytest.mark.parametrize("text", [TEXT, "河边的人大多见过这些船，他们知道集市会在天亮的时候开始。" * 3])
def test_signatures_estimate_the_jaccard_similarity_of_5_grams(text):
    minhash = MinHash(ngram=5, num_hashes=1024, seed=1)
    other = text[: len(text) * 3 // 4]
    left, right = set(minhash.shingles(text).tolist()), set(minhash.shingles(other).tolist())
    exact = len(left & right) / len(left | right)
    estimate = (minhash.signature(text) == minhash.signature(other)).mean()
    assert estimate == pytest.approx(exact, abs=0.06)


def test_han_characters_are_tokens_and_other_words_stay_whole():
    minhash = MinHash(ngram=1, num_hashes=1, seed=1)
    assert minhash.shingles("用 Python 写").size == 3
    assert minhash.shingles("用Python写").tolist() == minhash.shingles("写 python 用").tolist()


def test_candidates_share_a_band_and_others_are_never_proposed():
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 1 << 32, (50, 16), dtype=np.uint32)
    signatures[7, :4] = signatures[3, :4]
    signatures[9, 4:8] = signatures[7, 4:8]
    pairs = {
        (int(i), int(j)) for left, right in candidate_pairs(signatures, 4) for i, j in zip(left, right, strict=True)
    }
    assert pairs == {(3, 7), (7, 9)}
    component = connected_components(50, candidate_pairs(signatures, 4))
    assert component[9] == component[7] == component[3] == 3
    assert component[4] == 4


@needs_shared
def test_the_planted_set_is_cleaned_without_false_removals(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for file in (SHARED / "near_duplicates").glob("documents-*.jsonl.gz"):
        (source / file.name).symlink_to(file)
    assert main(["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "2"]) == 0
    kept = tmp_path / "kept.jsonl"
    write_documents(kept, documents_in(tmp_path / "out"))
    score = json.loads(run_python(SHARED / "near_duplicates" / "score.py", kept).stdout)
    assert score["precision"] == 1.0
    assert score["recall_J"]["0.9"] == 1.0
    assert score["recall_J"]["0.8"] >= 0.99
