"""Documents that join two configured languages are found, labelled and kept; terms, quotations and code join nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.curation_run.bilingual import label_of, measure, planted
from data_prep.core.command import CONFIGS
from data_prep.curate import bilingual_lines, curate_documents
from data_prep.curation.bilingual import bilingual_label
from data_prep.curation.characters import native
from data_prep.curation.curator import Curator
from data_prep.curation.language import language_shares
from data_prep.curation.settings import load_curate_config
from tests.conftest import documents_in
from tests.data_prep.curation.reference import alone, class_of
from tests.data_prep.curation.test_language import CHINESE, CODE, ENGLISH, GERMAN

CONFIG = load_curate_config(CONFIGS / "curate.yaml")
CURATOR = Curator(CONFIG)
PLANTED = planted()


def of_label(label: str | None) -> list[str]:
    return [document["text"] for document in PLANTED if document["label"] == label]


def test_planted_documents_are_found_and_no_others():
    result = measure(Path())
    assert result["found_share"] >= 0.95
    assert result["wrongly_found_share"] <= 0.02
    assert all(of["labelled_right"] >= 0.9 * of["documents"] for of in result["labels"].values())
    assert sum(of["documents"] for of in result["labels"].values()) >= 100
    assert result["monolingual_documents"] >= 100


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("\n\n".join([ENGLISH, GERMAN] * 3), "parallel"),
        (f"{ENGLISH}\n\n{GERMAN}", "translation"),
        (f"{GERMAN}\n\n{ENGLISH}", "translation"),
        (f"{ENGLISH}\n{ENGLISH}", None),
    ],
    ids=["alternate", "english-first", "german-first", "one-language"],
)
def test_two_languages_of_one_script(text, label):
    assert bilingual_label(text, language_shares(text), ("en", "de")) == label


def test_only_configured_languages_are_joined():
    both = f"{ENGLISH}\n\n{CHINESE}"
    shares = language_shares(both)
    assert bilingual_label(both, shares, ("en", "zh", "de")) == "translation"
    assert bilingual_label(both, shares, ("en", "de")) is None
    assert bilingual_label(both, shares, ("zh",)) is None
    assert bilingual_label(both, shares, ()) is None


@pytest.mark.parametrize(
    "text", ["", " \n", "\ud800 \0", CODE, f"{CHINESE}\n```\n{ENGLISH}\n", f"见 `{ENGLISH}`。{CHINESE}"]
)
def test_code_and_nothing_join_nothing(text):
    assert label_of(text) is None


@pytest.mark.parametrize("label", ["parallel", "translation", "switched", "glossary"])
def test_bilingual_documents_are_kept_whichever_of_their_languages_they_claim(label):
    texts = of_label(label)
    for claimed in ("en", "zh", None):
        verdicts = [CURATOR.judge({"id": "a", "text": text, "lang": claimed}, "files") for text in texts]
        assert sum(verdict.reason is None for verdict in verdicts) >= 0.8 * len(texts)
        assert {verdict.document["bilingual"] for verdict in verdicts} == {label}
        assert {verdict.document["lang"] for verdict in verdicts} <= {"en", "zh"}


def test_a_text_of_one_language_has_no_label_and_must_not_claim_another():
    verdict = CURATOR.judge({"id": "a", "text": ENGLISH, "lang": "zh", "bilingual": "parallel"}, "files")
    assert verdict.reason == "language_mismatch"
    assert "bilingual" not in verdict.document


def test_a_document_that_mixes_with_an_unconfigured_language_is_dropped_as_before():
    verdict = CURATOR.judge({"id": "a", "text": f"{GERMAN}\n\n{ENGLISH}\n\n{GERMAN}"}, "files")
    assert verdict.reason == "other_language"


def test_kept_documents_are_counted_by_language_and_label(tmp_path):
    texts = [*of_label("parallel")[:3], *of_label("translation")[:1], ENGLISH, CHINESE]
    documents = [{"id": str(place), "text": text} for place, text in enumerate(texts)]
    numbers = curate_documents(documents, 0, config=CONFIG, output=tmp_path, source="files")["numbers"]["bilingual"]
    kept = [document for document in documents_in(tmp_path) if "bilingual" in document]
    for language, labels in numbers.items():
        for label, counts in labels.items():
            of = [d for d in kept if (d["lang"], d["bilingual"]) == (language, label)]
            assert counts == {"documents": len(of), "bytes": sum(len(d["text"].encode()) for d in of)}
    assert sum(counts["documents"] for labels in numbers.values() for counts in labels.values()) == len(kept) == 4
    assert list(bilingual_lines({})) == []


def test_the_summary_names_languages_and_labels():
    results = {
        "bilingual": {
            "zh": {"parallel": {"documents": 1200, "bytes": 2_500_000}, "glossary": {"documents": 3, "bytes": 0}}
        }
    }
    assert list(bilingual_lines(results)) == ["bilingual   1,203  mostly in zh, 2.5 MB: parallel 1,200, glossary 3"]


# ---- the native scan beside a plain one

HAN = "[\u3040-\u30ff\u3400-\u9fff]"
MARKS = set("_/\\@=<>{}[]$#*~^")


def plain_passages(text: str, words: int, share: float) -> list[tuple[bool, int, str, int]]:
    """(Chinese or Japanese, line, what stands there, letters), line by line and token by token."""
    found, fence = [], ""
    for number, line in enumerate(text.split("\n")):
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            fence = "" if fence == bare[0] else fence or bare[0]
            continue
        is_code = (
            line.startswith(("    ", "\t"))
            or bare.startswith(("#", "//", ">>>", "/*"))
            or line.lstrip().startswith("$ ")
        )
        if fence or (is_code and not any(map(alone, line))):
            continue
        own, phrase, visible = "", [], 0

        def close(line=number):
            nonlocal own, phrase, visible
            letters = sum(sum(bool(class_of(c) & 1) for c in word) for word in phrase)
            if len(phrase) >= words and letters >= share * visible:
                if own:
                    found.append((True, line, own, len(own)))
                found.append((False, line, " ".join(phrase), letters))
                own = ""
            phrase, visible = [], 0

        def end(line=number):
            nonlocal own
            close()
            if own:
                found.append((True, line, own, len(own)))
            own = ""

        for token in re.findall(rf"`[^`]*`|<[^<>]{{0,199}}>|\t|{HAN}+|(?:(?!`[^`]*`|<[^<>]{{0,199}}>|{HAN})\S)+", line):
            if token == "\t":
                end()
            elif alone(token[0]):
                close()
                own += token
            elif not re.fullmatch(r"`[^`]*`|<[^<>]*>", token):
                visible += len(token)
                name = MARKS & set(token) or re.search(r"[a-z][A-Z]|[^\W\d_][.:(](?:[^\W\d_]|\))|\d", token)
                if not name and any(class_of(c) & 1 for c in token):
                    phrase.append(token)
                if re.search(r"[。！？|｜]|[.!?][\"')\]”’」』）]*$", token):
                    end()
        end()
    return found


def native_passages(text: str) -> list[tuple[bool, int, int]]:
    return [(own, line, letters) for own, line, _, _, _, letters in native.passages(text, 3, 0.85, 5, 12)[0]]


@pytest.mark.parametrize("number", range(0, len(PLANTED), 4))
def test_the_native_scan_finds_what_a_plain_one_finds(number):
    text = PLANTED[number]["text"]
    assert native_passages(text) == [(own, line, letters) for own, line, _, letters in plain_passages(text, 3, 0.85)]


def test_the_places_of_passages_are_theirs():
    text = "😀 他说 I have to go now，然后走了。\nThe end of it."
    found, sentence_count, lines, rows = native.passages(text, 3, 0.85, 5, 12)
    assert [text[start:stop] for _, _, _, start, stop, _ in found] == [
        "他说",
        "I have to go now，",
        "然后走了",
        "The end of it.",
    ]
    assert [(line, sentence) for _, line, sentence, _, _, _ in found] == [(0, 1), (0, 1), (0, 1), (1, 2)]
    assert (sentence_count, lines, rows) == (2, 2, 1)
