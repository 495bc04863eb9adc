"""Decontamination: documents that hold parts of evaluation items go, in both languages, and nothing else."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress

import pytest

from data_prep.core.shuffle import read_table
from data_prep.core.stage import Stage
from data_prep.decontaminate import main
from data_prep.decontamination import grams
from data_prep.decontamination.grams import EvaluationPart, is_han, merge_items, read_items, word_sequences
from data_prep.decontamination.items import texts_of
from data_prep.decontamination.settings import DecontaminateConfig
from data_prep.documents.reading import parts_of, read_documents, write_documents
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
    assert manifest["results"]["items_too_short"]["en/qa.jsonl"] == 1
    removed = {d["id"]: d for d in read_documents(tmp_path / "out" / "dropped" / "00000.jsonl.zst", print)}
    assert removed["part"]["evaluation_ngrams"] == {"en/qa.jsonl": 1}


SHORT = {"question": "Who founded the harbour museum?", "answer": "Ada Moss"}
SHORT_CHINESE = "这座桥的名字是什么意思"


def test_short_items_are_looked_for_as_a_whole(tmp_path):
    documents = [
        document("whole", f"{FILLER} Who founded the HARBOUR museum -- Ada Moss. {FILLER}"),
        document("question", f"Q: who founded the harbour museum? A: {FILLER}"),
        document("longer words", f"{FILLER} who founded the harbour museums Ada Moss {FILLER}"),
        document("less", f"{FILLER} founded the harbour museum? Ada Moss {FILLER}"),
        document("chinese", f"前言，{SHORT_CHINESE}？后记"),
        document("less chinese", f"前言，{SHORT_CHINESE[:-1]}，后记"),
        document("yes", f"{FILLER} Is it so? Yes, it is. {FILLER}"),
    ]
    items = {"en.jsonl": [SHORT, {"question": "Is it so?"}], "zh.jsonl": [{"q": SHORT_CHINESE}, {"q": "是不是"}]}
    code, kept = run(tmp_path, documents, items)
    assert (code, kept) == (0, {"longer words", "less", "less chinese", "yes"})
    results = load_json(tmp_path / "out" / "manifest.json")["results"]
    assert results["items_matched_whole"] == {"en.jsonl": 1, "zh.jsonl": 1}
    assert results["items_too_short"] == {"en.jsonl": 1, "zh.jsonl": 1}
    assert results["documents_by_set"] == {"en.jsonl": 2, "zh.jsonl": 1}


def test_a_short_item_as_a_whole_is_more_than_max_shared(tmp_path):
    (tmp_path / "decontaminate.yaml").write_text("max_shared: 5\n")
    documents = [document("a", f"{FILLER} {SHORT_CHINESE}"), document("b", FILLER)]
    items = {"x.jsonl": [{"q": SHORT_CHINESE}]}
    assert run(tmp_path, documents, items, "--config", tmp_path / "decontaminate.yaml") == (0, {"b"})


def test_items_that_cannot_be_checked_are_named(tmp_path, capsys):
    items = {"x.jsonl": [{"q": "True or\nfalse?"}, {"q": ""}, {"q": QUESTION}]}
    assert run(tmp_path, [document("a", FILLER)], items) == (0, {"a"})
    printed = capsys.readouterr().out
    assert "2 of 3 items cannot be checked: they have fewer than 5 words (in Chinese 8 characters)" in printed
    assert "'True or false?' of x.jsonl" in printed
    results = load_json(tmp_path / "out" / "manifest.json")["results"]
    assert results["too_short_examples"] == [{"set": "x.jsonl", "text": "True or false?"}]


def test_no_item_is_looked_for_in_two_ways(tmp_path, capsys):
    (tmp_path / "decontaminate.yaml").write_text("min_item_words: 14\n")
    words = ("--config", tmp_path / "decontaminate.yaml")
    assert run(tmp_path, [document("a", FILLER)], {"x.jsonl": [SHORT]}, *words)[0] == 2
    assert "min_item_words is 14 and ngram_words 13" in capsys.readouterr().err


def test_evaluation_sets_of_which_nothing_can_be_looked_for_are_refused(tmp_path, capsys):
    items = {"x.jsonl": [{"q": "True or false?"}, {"subject": QUESTION}]}
    (tmp_path / "decontaminate.yaml").write_text("ignored_fields: [subject]\n")
    assert run(tmp_path, [document("a", FILLER)], items, "--config", tmp_path / "decontaminate.yaml")[0] == 2
    assert "none of the 2 items of --evaluation" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("item", ["下列哪一條河流在港口建成之前就已經被當地的居民改道了", "這座橋的名字是什麼意思"])
def test_simplified_and_traditional_texts_are_alike(item, tmp_path):
    simplified = CHINESE if len(item) > 20 else SHORT_CHINESE
    documents = [document("simplified", f"前言。{simplified}？"), document("traditional", f"前言。{item}？")]
    documents.append(document("other", "前言。"))
    for number, text in enumerate((item, simplified)):
        (tmp_path / str(number)).mkdir()
        assert run(tmp_path / str(number), documents, {"x.jsonl": [{"q": text}]}) == (0, {"other"})


NOTICE = "All rights reserved by the owners of this site who may not be named in any of its pages"


@pytest.mark.parametrize("holding", [3, 4])
@pytest.mark.parametrize("files", [1, 2])
def test_sequences_that_many_documents_have_do_not_count(holding, files, tmp_path, capsys):
    (tmp_path / "decontaminate.yaml").write_text("max_corpus_documents: 3\n")
    documents = [document(f"notice{i}", f"{FILLER} {NOTICE}, {NOTICE} {i}") for i in range(holding - 1)]
    documents += [document("both", f"{NOTICE} {QUESTION}"), document("question", f"{QUESTION} {FILLER}")]
    documents += [document("clean", FILLER)]
    (tmp_path / "in").mkdir()
    for number in range(files):
        write_documents(tmp_path / "in" / f"{number}.jsonl", documents[number::files])
    (tmp_path / "eval").mkdir()
    items = [{"question": QUESTION}, {"question": NOTICE}]
    (tmp_path / "eval" / "x.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["--input", tmp_path / "in", "--evaluation", tmp_path / "eval", "--output", tmp_path / "out"]
    words += ["--config", tmp_path / "decontaminate.yaml", "--workers", 1]
    assert main([str(word) for word in words]) == 0
    notices = {f"notice{i}" for i in range(holding - 1)}
    assert {d["id"] for d in documents_in(tmp_path / "out")} == {"clean"} | (notices if holding > 3 else set())
    dropped = [d for path in (tmp_path / "out" / "dropped").iterdir() for d in read_documents(path, print)]
    assert {d["id"] for d in dropped} == {"both", "question"} | (set() if holding > 3 else notices)
    manifest = load_json(tmp_path / "out" / "manifest.json")
    assert manifest["counts"]["dropped"] == {"contaminated": len(dropped)}
    if holding > 3:
        assert manifest["results"]["frequent_ngrams"] == len(NOTICE.split()) - 12
        assert {e["documents"] for e in manifest["results"]["frequent_examples"]} == {holding}
        number = len(NOTICE.split()) - 12
        said = f"{number} sequences of items do not count, since more than 3 documents have them"
        assert said in capsys.readouterr().out
        shared = {d["id"]: d["evaluation_ngrams"]["x.jsonl"] for d in dropped}
        assert shared["both"] == shared["question"] == len(QUESTION.split()) - 12
    else:
        assert manifest["results"]["frequent_ngrams"] == 0


def test_only_parts_with_a_frequent_sequence_are_read_again(tmp_path):
    (tmp_path / "decontaminate.yaml").write_text("max_corpus_documents: 1\n")
    (tmp_path / "in").mkdir()
    texts = [[f"{FILLER} {NOTICE}"], [f"{FILLER} {QUESTION}", FILLER], [f"{NOTICE} {FILLER}"], [FILLER]]
    for number, of_part in enumerate(texts):
        write_documents(
            tmp_path / "in" / f"{number}.jsonl", [document(f"{number}{i}", t) for i, t in enumerate(of_part)]
        )
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"q": text}) + "\n" for text in (NOTICE, QUESTION)))
    words = ["--input", tmp_path / "in", "--evaluation", tmp_path / "eval.jsonl", "--output", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--config", tmp_path / "decontaminate.yaml", "--workers", 1)]) == 0
    read_again = [load_json(path)["read"]["file"] for path in sorted((tmp_path / "out" / "tasks" / "again").iterdir())]
    assert read_again == ["0.jsonl", "2.jsonl"]
    assert {d["id"] for d in documents_in(tmp_path / "out")} == {"00", "11", "20", "30"}


@pytest.mark.parametrize(
    "lost", [["again/00000.json"], ["frequent/00000.json", "again/00000.json"]], ids=["again", "frequent"]
)
def test_a_run_killed_after_parts_were_read_again_ends_in_the_same_bytes(lost, tmp_path, monkeypatch):
    (tmp_path / "decontaminate.yaml").write_text("max_corpus_documents: 1\n")
    write_documents(
        tmp_path / "in.jsonl", [document("a", NOTICE), document("b", f"{NOTICE} {QUESTION}"), document("c", FILLER)]
    )
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"q": text}) + "\n" for text in (NOTICE, QUESTION)))
    words = ["--input", tmp_path / "in.jsonl", "--evaluation", tmp_path / "eval.jsonl", "--workers", 1]
    words += ["--config", tmp_path / "decontaminate.yaml", "--output"]

    def killed(*_, **__):
        raise KeyboardInterrupt

    def job(name):
        return main([str(word) for word in (*words, tmp_path / name)])

    assert job("reference") == 0
    with monkeypatch.context() as patched:
        patched.setattr(Stage, "finish", killed)
        with suppress(KeyboardInterrupt):
            job("killed")
    for marker in lost:
        (tmp_path / "killed" / "tasks" / marker).unlink()
    assert job("killed") == 0
    folders = [tmp_path / name for name in ("reference", "killed")]
    reference, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert again == reference
    assert {d["id"] for d in documents_in(tmp_path / "killed")} == {"a", "c"}


def test_a_prompt_that_all_items_share_is_no_contamination(tmp_path):
    prompt = "The following are multiple choice questions with answers about the history of the old harbour town."
    items = {"x.jsonl": [{"question": f"{prompt} {i} {i}"} for i in range(12)]}
    code, kept = run(tmp_path, [document("a", f"{FILLER} {prompt} {FILLER}")], items)
    assert (code, kept) == (0, {"a"})


@pytest.mark.parametrize("items", [2, 3, 4])
def test_an_ngram_of_as_many_items_as_the_limit_is_a_template(items, tmp_path):
    (tmp_path / "decontaminate.yaml").write_text("template_items: 3\n")
    sets = {"x.jsonl": [{"question": f"{QUESTION} {i}"} for i in range(items)]}
    documents = [document("a", f"{FILLER} {QUESTION}"), document("b", FILLER)]
    _, left = run(tmp_path, documents, sets, "--config", tmp_path / "decontaminate.yaml")
    assert left == ({"b"} if items < 3 else {"a", "b"})
    templates = load_json(tmp_path / "out" / "manifest.json")["results"]["template_ngrams"]
    words = len(QUESTION.split())
    assert templates == {
        "characters": 0,
        "whole_characters": 0,
        "whole_words": 0,
        "words": 0 if items < 3 else words - 12,
    }


@pytest.mark.parametrize("allowed", [0, 5, 6])
def test_a_document_may_share_as_many_ngrams_as_is_asked_for(allowed, tmp_path):
    (tmp_path / "decontaminate.yaml").write_text(f"max_shared: {allowed}\n")
    shared = len(QUESTION.split()) - 12
    assert shared == 6
    _, left = run(
        tmp_path,
        [document("a", f"{FILLER} {QUESTION}"), document("b", FILLER)],
        {"x.jsonl": [{"question": QUESTION}]},
        "--config",
        tmp_path / "decontaminate.yaml",
    )
    assert left == ({"a", "b"} if allowed >= shared else {"b"})


def test_fields_that_are_ignored_are_no_items(tmp_path):
    (tmp_path / "decontaminate.yaml").write_text("ignored_fields: [source]\n")
    record = {"question": "Too short?", "source": QUESTION}
    _, left = run(
        tmp_path,
        [document("a", f"{FILLER} {QUESTION}")],
        {"x.jsonl": [record, {"question": CHINESE}]},
        "--config",
        tmp_path / "decontaminate.yaml",
    )
    assert left == {"a"}


def test_every_text_of_an_item_counts_but_its_labels():
    record = {"id": "x", "q": "one", "choices": [{"text": "two", "id": "y"}, "three"], "n": 3, "none": None}
    assert list(texts_of(record, frozenset({"id"}))) == ["one", "two", "three"]


def test_texts_are_found_in_their_order_however_deep():
    deep: object = ["deepest"]
    for _ in range(5000):
        deep = [deep]
    assert list(texts_of({"a": b"bytes", "b": b"\xff", "c": deep, "d": "last"}, frozenset())) == [
        "bytes",
        "deepest",
        "last",
    ]


LINE = json.dumps({"question": QUESTION})


@pytest.mark.parametrize(
    ("name", "content", "items"),
    [
        ("bom.jsonl", "\ufeff" + LINE, 1),
        ("nan.jsonl", f'{LINE[:-1]}, "score": NaN, "low": -Infinity}}\n', 1),
        ("half.jsonl", f'{LINE[:-1]}, "emoji": "\\ud83d"}}\n', 1),
        ("strings.jsonl", f'{json.dumps(QUESTION)}\n5\nnull\n["a"]\n', 4),
        ("array.json", f"\ufeff[{LINE},\n {LINE}]", 2),
        ("pretty.json", json.dumps({"question": QUESTION, "choices": [{"text": "a"}]}, indent=1), 1),
        (
            "squad.json",
            json.dumps({"version": "1.1", "data": [{"title": i, "qas": [QUESTION]} for i in "abcdefghij"]}),
            11,
        ),
        ("lines.json", f"{LINE}\n\n{LINE}\n", 2),
    ],
)
def test_evaluation_sets_of_many_forms_are_read(name, content, items, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / name).write_text(content, encoding="utf-8")
    documents = [document("contaminated", f"{FILLER} {QUESTION}"), document("clean", FILLER)]
    code, kept = run(tmp_path, documents, {})
    results = load_json(tmp_path / "out" / "manifest.json")["results"]
    assert (code, results["items"]) == (0, {name: items})
    # Ten items with one question are a template.
    assert kept == {"clean"} if items < 10 else {"clean", "contaminated"}


def test_files_that_are_not_read_are_named(tmp_path, capsys):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "test.csv").write_text(QUESTION)
    os.mkfifo(tmp_path / "eval" / "x.jsonl")  # would be waited for
    words = ["--input", tmp_path / "in.jsonl", "--evaluation", tmp_path / "eval", "--output", tmp_path / "out2"]
    write_documents(tmp_path / "in.jsonl", [document("a", FILLER)])
    assert main([str(w) for w in words]) == 2
    assert "holds no file of an evaluation set" in capsys.readouterr().err
    assert run(tmp_path, [document("a", FILLER)], {"a.jsonl": [{"question": QUESTION}]}) == (0, {"a"})
    assert "2 files of --evaluation are not read, such as test.csv, x.jsonl" in capsys.readouterr().out


def plain_ngrams(sets, config):
    """The n-grams that count and the first set of each, and how many are templates, by one pass over all items."""
    seen: dict[str, dict[int, list[int]]] = {"words": {}, "characters": {}}
    for number, items in enumerate(sets):
        for item in items:
            text = item["question"]
            kind, length = ("characters", config.ngram_characters) if is_han(text) else ("words", config.ngram_words)
            for value in set(word_sequences().hashes(text, length).tolist()):
                seen[kind].setdefault(value, []).append(number)
    right = {
        kind: {value: min(owners) for value, owners in grams.items() if len(owners) < config.template_items}
        for kind, grams in seen.items()
    }
    return right, {kind: len(seen[kind]) - len(right[kind]) for kind in seen}


@pytest.mark.parametrize("part_bytes", [10**9, 2000])
def test_ngrams_are_the_same_however_the_sets_are_cut(part_bytes, tmp_path, monkeypatch):
    rng = random.Random(1)
    words, hans = [f"w{i}" for i in range(6)], "港口建成之前"
    sets = [
        [
            {"question": " ".join(rng.choices(words, k=8)) if i % 2 else "".join(rng.choices(hans, k=9))}
            for i in range(120)
        ]
        for _ in range(3)
    ]
    config = DecontaminateConfig(ngram_words=4, ngram_characters=4, template_items=5)
    monkeypatch.setattr(grams, "PENDING_NGRAMS", 20)
    monkeypatch.setattr("data_prep.core.shuffle.PARTITION_BYTES", 4096 if part_bytes == 2000 else 10**9)
    tasks = []
    for number, items in enumerate(sets):
        write_documents(tmp_path / f"{number}.jsonl", items)
        parts = parts_of(tmp_path / f"{number}.jsonl", part_bytes)
        tasks += [EvaluationPart(f"set{number}", number, part) for part in parts]
    assert len(tasks) == 3 if part_bytes == 10**9 else len(tasks) > 6
    for number, task in reversed(list(enumerate(tasks))):
        read_items(task, number, config=config, folder=tmp_path / "grams")
    merged = merge_items(["set0", "set1", "set2"], 0, config=config, folder=tmp_path / "grams")
    right, templates = plain_ngrams(sets, config)
    assert merged["template_ngrams"] == {**templates, "whole_characters": 0, "whole_words": 0}
    for kind, owners in right.items():
        table = read_table(tmp_path / "grams" / f"{kind}.arrow")
        assert table["hash"].to_pylist() == sorted(owners)
        assert table["set"].to_pylist() == [f"set{owners[value]}" for value in sorted(owners)]
        assert 0 < len(owners) < len(owners) + templates[kind]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("{" + LINE, "has a line that is not JSON"),
        ("[" * 100_000, "has a line that is not JSON"),
        (None, "does not exist; give a file or folder of evaluation sets"),
        ("not json\n", "has a line that is not JSON"),
        ("\n", "holds no items"),
    ],
)
def test_bad_evaluation_sets_are_refused(tmp_path, capsys, items, message):
    write_documents(tmp_path / "in.jsonl", [document("a", FILLER)])
    if items is not None:
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval" / "x.jsonl").write_text(items)
    words = ["--input", tmp_path / "in.jsonl", "--evaluation", tmp_path / "eval", "--output", tmp_path / "out"]
    assert main([str(w) for w in words]) == 2
    assert message in capsys.readouterr().err
