"""Curation: each rule drops what it is for, keeps plain text, and is counted."""

from __future__ import annotations

import pytest

from data_prep.command import CONFIGS
from data_prep.curate import CurateConfig, judge
from data_prep.documents import read_documents, write_documents
from data_prep.language import detect_script, normalize
from data_prep.rules import RULES, reason_to_drop
from recipe.base.strict import load_json, load_yaml, strict_model
from tests.conftest import SHARED, needs_shared, run_python

CONFIG = strict_model(CurateConfig, load_yaml(CONFIGS / "curate.yaml"), "curate.yaml")
ENGLISH = (
    "Most of the people who lived near the river had seen the boats before, and they knew that the market would "
    "open with the first light. Some of them carried baskets to the square; others waited for their children to "
    "come back from the hills. Nobody wanted to be late, because bread was cheap in the early hours."
)
CHINESE = (
    "住在河边的人大多见过这些船，他们知道集市会在天亮的时候开始。有人提着篮子走到广场，也有人在等孩子们从山上回来。"
    "没有人想迟到，因为清晨的面包最便宜。后来下了一场大雨，石板路上都是水，卖鱼的老人只好把摊子搬到屋檐下面，"
    "一边擦着手，一边和过路的客人说起去年夏天的事情。"
)


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (CHINESE, "zh")])
def test_plain_text_is_kept_and_labelled(text, language):
    document, reason = judge({"id": "a", "text": text}, CONFIG, "files")
    assert reason is None
    assert (document["lang"], document["source"]) == (language, "files")


EXAMPLES = [
    ("too_short", "en", "A few words of it."),
    ("too_short", "zh", "很短的一句话。"),
    ("too_long", "en", ENGLISH * 2000),
    ("word_length", "en", ("a b c d e f of the " * 20)),
    ("too_few_words", "en", "1234 34567 5678 90123 4321 of the " * 20),
    ("too_few_words", "zh", CHINESE[:90] + "print(result_of_the_function) " * 20),
    ("symbols", "en", ENGLISH + " # ... #" * 10),
    ("symbols", "zh", CHINESE + "……#" * 20),
    ("too_few_stop_words", "en", "red green blue yellow orange purple " * 12),
    ("too_few_stop_words", "zh", "红绿蓝黄橙紫青" * 20),
    ("duplicate_lines", "en", "\n".join([ENGLISH] * 3)),
    ("duplicate_lines", "zh", "\n".join([CHINESE] * 3)),
    ("repeated_bigram", "en", ENGLISH + " buy now" * 30),
    ("repeated_bigram", "zh", CHINESE + "便宜" * 60),
]


@pytest.mark.parametrize(("rule", "language", "text"), EXAMPLES, ids=[f"{r}-{lang}" for r, lang, _ in EXAMPLES])
def test_each_rule_drops_what_it_is_for(rule, language, text):
    assert reason_to_drop(text, CONFIG.languages[language]) == rule


def test_every_rule_has_an_example():
    assert {rule for rule, _, _ in EXAMPLES} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"text": "Большинство людей у реки видели лодки. " * 10}, "other_language"),
        ({"text": ENGLISH, "lang": "zh"}, "language_mismatch"),
        ({"text": ENGLISH, "lang": "en"}, None),
        ({"text": CHINESE, "lang": "cmn_Hani"}, None),
    ],
)
def test_the_language_is_detected_and_must_agree_with_the_label(document, reason):
    judged, found = judge({"id": "a", **document}, CONFIG, "x")
    assert found == reason
    if reason is None:
        assert judged["lang"] in ("en", "zh")


@pytest.mark.parametrize(("text", "script"), [(ENGLISH, "latin"), (CHINESE, "han"), ("12345 ...", None), ("Ёж", None)])
def test_scripts(text, script):
    assert detect_script(text) == script


def test_normalisation_composes_and_cleans():
    assert normalize("e\u0301a\r\nb \x00\n\n\n\nc\n") == "éa\nb\n\nc"


def test_counts_and_dropped_documents_are_kept_for_reading(tmp_path):
    write_documents(
        tmp_path / "web.jsonl",
        [{"id": "1", "text": ENGLISH}, {"id": "2", "text": CHINESE}, {"id": "3", "text": "Too short."}],
    )
    done = run_python("data_prep/curate.py", "--input", tmp_path / "web.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "curate: 3 in, 2 out" in done.stdout
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["dropped"] == {"too_short": 1}
    assert counts["by_language"]["en"] == {"in": 2, "out": 1, "dropped": {"too_short": 1}}
    assert counts["by_source"]["web"]["in"] == 3
    (dropped,) = read_documents(tmp_path / "out" / "dropped" / "00000.jsonl.zst", print)
    assert (dropped["id"], dropped["dropped"]) == ("3", "too_short")


@needs_shared
def test_most_of_a_real_corpus_of_prose_is_kept(tmp_path):
    done = run_python(
        "data_prep/curate.py", "--input", SHARED / "corpus" / "en_peps.jsonl.gz", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    counts = load_json(tmp_path / "out" / "manifest.json")["counts"]
    assert counts["out"] > 0.9 * counts["in"]
