"""The benchmark of curation: its counting, and that no rule has become worse than the committed result says."""

from __future__ import annotations

import json

import pytest

from benchmarks import curation
from benchmarks.curation_run import classifier, masks, quality

RESULT = curation.ROOT / "benchmarks" / "results" / "curation.json"


def row(name, keep, kind="prose", split="dev", lang="en"):
    return {"id": name, "lang": lang, "kind": kind, "keep": keep, "split": split, "text": name}


ROWS = [
    row("a", True), row("b", True, "verse", "test"), row("c", True, "verse"), row("d", False, "advertisement"),
    row("e", False, "advertisement", "test"), row("f", False, "log"), row("g", False, "log", "test"),
    row("z", False, "log", lang="zh"),
]  # fmt: skip
OURS = {"b": "short", "d": "stop_words", "e": "stop_words", "f": "short"}
TINY = quality.compare(ROWS, {"ours": OURS, "published": {}})["languages"]


def test_precision_and_recall_are_counted_by_split():
    assert TINY["en"]["documents"] == {
        "all": {"keep": 3, "drop": 4}, "dev": {"keep": 2, "drop": 2}, "test": {"keep": 1, "drop": 2},
    }  # fmt: skip
    scores = TINY["en"]["tools"]["ours"]
    assert scores["all"] == {"dropped": 4, "rightly": 3, "precision": 0.75, "recall": 0.75}
    assert scores["dev"] == {"dropped": 2, "rightly": 2, "precision": 1.0, "recall": 1.0}
    assert scores["test"] == {"dropped": 2, "rightly": 1, "precision": 0.5, "recall": 0.5}
    nothing = {"dropped": 0, "rightly": 0, "precision": None, "recall": 0.0}
    assert TINY["zh"]["tools"]["ours"]["all"] == TINY["en"]["tools"]["published"]["all"] == nothing
    assert TINY["zh"]["tools"]["ours"]["test"]["recall"] is None


def test_rules_and_kinds_are_counted_apart():
    assert TINY["en"]["rules"]["ours"] == {
        "short": {"dropped": 2, "rightly": 1, "precision": 0.5, "recall": 0.25},
        "stop_words": {"dropped": 2, "rightly": 2, "precision": 1.0, "recall": 0.5},
    }
    assert [(kind["kind"], kind["keep"], kind["documents"], kind["dropped"]["ours"]) for kind in TINY["en"]["kinds"]] == [
        ("prose", True, 1, 0), ("verse", True, 2, 1), ("advertisement", False, 2, 2), ("log", False, 2, 1),
    ]  # fmt: skip


def test_the_command_measures_writes_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "labelled", lambda: ROWS)
    monkeypatch.setattr(quality, "published_reasons", lambda rows, python: ("0.0", {"a": "list_ratio"}))
    monkeypatch.setitem(curation.SECTIONS, "quality", curation.Section(quality.measure, quality.table))
    words = ["--peers", str(tmp_path), "--only", "quality", "--output", str(tmp_path / "curation.json")]
    assert curation.main(words) == 0
    printed = capsys.readouterr().out
    assert curation.main(["--table", str(tmp_path / "curation.json")]) == 0
    assert capsys.readouterr().out == printed
    assert "| en | FineWeb | 0.0% | 0.0% |" in printed
    assert "| en | ours | 57.1% | 100.0% |" in printed  # texts of one letter: all seven are too short
    assert curation.main(["--peers", str(tmp_path / "nowhere")]) == 2


def test_masks_and_bilingual_documents_have_their_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(masks, "_peer_spans", lambda python: {})
    output = tmp_path / "curation.json"
    words = ["--peers", str(tmp_path), "--only", "masks", "--only", "bilingual", "--output", str(output)]
    assert curation.main(words) == 0
    printed = capsys.readouterr().out
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(result) == {"machine", "masks", "bilingual"}
    for kind, score in result["masks"]["tools"]["ours"]["test"].items():
        assert (score["precision"] >= 0.98, score["recall"] >= 0.95) == (True, True), kind
    one = result["bilingual"]
    assert f"| one language | {one['monolingual_documents']} | {one['wrongly_found']} |  |" in printed
    assert all(f"| {label} | {of['documents']} | {of['found']} |" in printed for label, of in one["labels"].items())


def test_the_classifier_is_measured_without_its_peers_too(tmp_path):
    rows = [json.dumps({"text": f"{name} " * 20, "keep": name == "good", "split": split})
            for split in ("dev", "test") for name in ("good", "bad") * 4]  # fmt: skip
    (tmp_path / "en.jsonl").write_text("\n".join(rows), encoding="utf-8")
    measured = classifier.measure(tmp_path / "nowhere", labelled=tmp_path, repeats=1)
    assert (measured["en"]["learnt_from"], measured["en"]["ours"]["accuracy"]) == (8, 1.0)
    ours, *others = classifier.table(measured).splitlines()[2:]
    assert ours.startswith("| en | ours | 8 | 8 | 1.000 |")
    assert all("nowhere does not exist; make benchmark-peers" in line for line in others)


def test_peers_that_fail_say_what_to_do(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named datatrove' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(quality.UserError, match="No module named datatrove; make benchmark-peers"):
        quality.published_reasons(ROWS, python)


def test_our_rules_are_not_worse_than_the_committed_result():
    """On the half that no rule was tuned on. A change of rules that lowers a figure has to write the result anew."""
    committed = json.loads(RESULT.read_text(encoding="utf-8"))["quality"]["languages"]
    rows = quality.labelled()
    measured = quality.compare(rows, {"ours": quality.our_reasons(rows)})["languages"]
    assert {language: found["documents"] for language, found in measured.items()} == {
        language: found["documents"] for language, found in committed.items()
    }
    for language, found in measured.items():
        now, then = found["tools"]["ours"]["test"], committed[language]["tools"]["ours"]["test"]
        assert now["precision"] >= then["precision"], language
        assert now["recall"] >= then["recall"], language
