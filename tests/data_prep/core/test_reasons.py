"""Every reason that a data job can give to drop a document is a sentence, with the threshold of the run that dropped it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.core.reasons import OTHERS, STATISTICS, sentence
from data_prep.curation.characters import native
from tests.conftest import ROOT


def texts_in(node: ast.AST) -> Iterator[str]:
    """Strings that a value can be: those of comparisons and calls in it are not."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts_in(node.body)
        yield from texts_in(node.orelse)
    elif isinstance(node, ast.Tuple):
        for element in node.elts:
            yield from texts_in(element)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            if key is not None:
                yield from texts_in(key)


def reasons_in(path: Path) -> Iterator[str]:
    """What a module returns as a reason, makes a verdict with, or counts as dropped."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("reason"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from texts_in(inner.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Verdict":
            yield from texts_in(node.args[1])
        elif (
            isinstance(node, ast.For)
            and ast.unparse(node.target).startswith("(reason, ")
            and isinstance(node.iter, ast.Tuple)
        ):
            for pair in node.iter.elts:
                yield from texts_in(pair.elts[0])  # type: ignore[attr-defined]
        elif isinstance(node, ast.Assign):
            target = ast.unparse(node.targets[0])
            if target in ("reason", "dropped", "REASONS") and not isinstance(node.value, ast.List):
                yield from (texts_in(node.value.body) if isinstance(node.value, ast.IfExp) else texts_in(node.value))
            elif target.startswith("counts['dropped']["):
                yield from texts_in(node.targets[0].slice)  # type: ignore[attr-defined]


def test_every_reason_in_the_code_has_a_sentence_and_no_other_has():
    jobs = [path for path in (ROOT / "data_prep").rglob("*.py") if path.name != "reasons.py"]
    assert {reason for path in jobs for reason in reasons_in(path)} == set(OTHERS)


def test_every_statistic_of_the_quality_rules_has_a_sentence():
    assert set(STATISTICS) == set(native.STATISTICS)
    for name in STATISTICS:
        limits = {"languages": {"en": {"rules": {name: {"min": 0.25, "max": 0.75}}}}}
        low, high = (sentence(f"{name}_{side}", limits) for side in ("low", "high"))
        assert "25" in low, name
        assert "75" in high, name
        assert "configured" not in low + high


RULES = {
    "en": {"rules": {"words": {"min": 5, "max": 1e5}, "short_line_share": {"max": 0.8}, "hash_per_word": {"max": 0.1}}},
    "zh": {"rules": {"words": {"min": 80, "max": 1e5}, "short_line_share": {"max": 0.8}}},
}


@pytest.mark.parametrize(
    ("reason", "parameters", "languages", "expected"),
    [
        ("words_low", {"languages": RULES}, ["en"], "fewer than 5 words"),
        ("words_low", {"languages": RULES}, [], "fewer than 5 (en) or 80 (zh) words"),
        ("words_high", {"languages": RULES}, [], "more than 100,000 words"),
        ("short_line_share_high", {"languages": RULES}, ["zh"], "more than 80% of the lines have 30 characters or fewer"),
        ("hash_per_word_high", {"languages": RULES}, [], "more than 10 “#” per 100 words"),
        ("words_low", {}, ["en"], "fewer than the configured number of words"),
        ("other_language", {"languages": RULES}, ["ru"], "the language is not en or zh"),
        ("near_duplicate", {"threshold": 0.7}, [], "at least 70% similar to a document that stays"),
        ("near_duplicate", {}, [], "almost the same text as a document that stays"),
        ("quality_low", {"quality": {"min": 0.5}}, [], "the quality score is below 0.5"),
        ("quality_low", {"quality": {"min": {"en": 0.5, "zh": 0.4, "de": None}}}, ["en", "zh"], "the quality score is below 0.5 (en) or 0.4 (zh)"),
        ("quality_low", {"quality": {"min": {"en": 0.5, "zh": 0.4}}}, ["zh"], "the quality score is below 0.4"),
        ("quality_low", {"quality": None}, [], "the quality score is too low"),
        (
            "contaminated",
            {"ngram_words": 13, "ngram_characters": 20, "min_item_words": 5, "min_item_characters": 8, "max_shared": 0},
            [],
            "has a sequence of 13 words (in Chinese 20 characters) from an evaluation set, or a whole shorter item of at least 5 "
            "words (in Chinese 8 characters)",
        ),
        (
            "contaminated",
            {"ngram_words": 13, "ngram_characters": 20, "max_shared": 0},
            [],
            "has sequences of words that are also in an evaluation set",
        ),
        ("a_rule_of_tomorrow", {}, [], "a_rule_of_tomorrow"),
    ],
)  # fmt: skip
def test_a_sentence_has_the_threshold_that_the_stage_has_recorded(reason, parameters, languages, expected):
    assert sentence(reason, parameters, languages) == expected


def test_a_kind_of_text_with_a_threshold_of_its_own_is_named():
    rules = {"rules": {"words": {"min": 80}}, "kinds": {"verse": {"words": {"min": 20}, "lines": None}}}
    parameters = {"languages": {"zh": rules, "en": {"rules": {"words": {"min": 50}}}}}
    assert sentence("words_low", parameters, ["zh"]) == "fewer than 80 words (other limits for verse)"
    assert sentence("words_low", parameters, ["en"]) == "fewer than 50 words"
