"""Decontamination: documents that hold parts of evaluation items go, in both languages, and nothing else."""

from __future__ import annotations

import json

import pytest

from data_prep.decontaminate import main, texts_of
from data_prep.documents import read_documents, write_documents
from recipe.base.strict import load_json
from tests.conftest import documents_in

QUESTION = "Which of the many rivers that cross the old town was moved before the harbour was built there"
CHINESE = "下列哪一条河流在港口建成之前就已经被当地的居民改道了"
FILLER = " ".join(f"word{i}" for i in range(40))


def run(tmp_path, documents, items, *more):
    write_documents(tmp_path / "in.jsonl", documents)
    for name, records in items.items():
        (tmp_path / "eval" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "eval" / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    words = ["--input", tmp_path / "in.jsonl", "--evaluation", tmp_path / "eval", "--output", tmp_path / "out"]
    code = main([str(w) for w in (*words, "--workers", 1, *more)])
    return code, {d["id"] for d in documents_in(tmp_path / "out")} if code == 0 else None


def document(identity, text):
    return {"id": identity, "text": text, "lang": "en", "source": "web"}


def test_documents_with_a_part_of_an_item_go(tmp_path):
    documents = [
        document("whole", f"{FILLER} {QUESTION}? {FILLER}"),
        document("part", f"{FILLER} {' '.join(QUESTION.upper().split()[:13])}, {FILLER}"),
        document("twelve words", f"{FILLER} {' '.join(QUESTION.split()[:12])} {FILLER}"),
        document("chinese", f"前言。{CHINESE}？后记。"),
        document("nineteen characters", f"前言。{CHINESE[:19]}"),
        document("clean", FILLER),
    ]
    items = {
        "en/qa.jsonl": [
            {"id": FILLER, "question": QUESTION, "choices": {"text": ["a", "b"]}},
            {"question": "Too short?"},
        ],
        "zh.jsonl": [{"input": CHINESE}],
    }
    code, kept = run(tmp_path, documents, items)
    assert code == 0
    assert kept == {"twelve words", "nineteen characters", "clean"}
    manifest = load_json(tmp_path / "out" / "manifest.json")
    assert manifest["counts"]["dropped"] == {"contaminated": 3}
    assert manifest["results"]["documents_by_set"] == {"en/qa.jsonl": 2, "zh.jsonl": 1}
    assert manifest["results"]["items_without_text"]["en/qa.jsonl"] == 1
    removed = {d["id"]: d for d in read_documents(tmp_path / "out" / "dropped" / "00000.jsonl.zst", print)}
    assert removed["part"]["evaluation_ngrams"] == {"en/qa.jsonl": 1}


def test_a_prompt_that_all_items_share_is_no_contamination(tmp_path):
    prompt = "The following are multiple choice questions with answers about the history of the old harbour town."
    items = {"x.jsonl": [{"question": f"{prompt} {i} {i}"} for i in range(12)]}
    code, kept = run(tmp_path, [document("a", f"{FILLER} {prompt} {FILLER}")], items)
    assert (code, kept) == (0, {"a"})


def test_every_text_of_an_item_counts_but_its_labels():
    record = {"id": "x", "q": "one", "choices": [{"text": "two", "id": "y"}, "three"], "n": 3, "none": None}
    assert list(texts_of(record, frozenset({"id"}))) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (None, "does not exist; give a file or folder of evaluation sets"),
        ("not json\n", "has a line that is not JSON"),
        ("\n", "holds no items"),
    ],
)
def test_bad_evaluation_sets_are_refused(tmp_path, capsys, items, said):
    write_documents(tmp_path / "in.jsonl", [document("a", FILLER)])
    if items is not None:
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval" / "x.jsonl").write_text(items)
    words = ["--input", tmp_path / "in.jsonl", "--evaluation", tmp_path / "eval", "--output", tmp_path / "out"]
    assert main([str(w) for w in words]) == 2
    assert said in capsys.readouterr().err
