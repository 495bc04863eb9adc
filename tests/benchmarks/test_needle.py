"""A tiny model that learned recall at 256 tokens finds needles in 2,048 once its context is extended, and hardly before."""

from __future__ import annotations

import json

import pytest

from benchmarks import needle
from recipe.evaluation.needle import LANGUAGES
from tests.conftest import run_python
from tests.patience import PATIENCE_S


def test_a_vocabulary_reads_texts_back_into_their_terms():
    vocabulary = needle.Vocabulary()
    for language in LANGUAGES.values():
        terms = [*language.needle(language.keys[3], language.passwords[5]), *language.terms]
        assert [vocabulary.terms[token] for token in vocabulary.encode(language.text(terms))] == terms


@pytest.mark.slow
def test_a_tiny_model_recalls_at_eight_times_its_length_once_extended_and_not_before(tmp_path):
    output, words = tmp_path / "needle.json", ("--steps", 1000, "--extension-steps", 10, "--extensions", "larger base")
    done = run_python("benchmarks/needle.py", *words, "--samples", 8, "--output", output, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text(encoding="utf-8"))["accuracy"]
    mean = lambda name, length, language: sum(found[name][str(length)][language]) / len(needle.DEPTHS)  # noqa: E731
    for language in LANGUAGES:
        assert mean("after, larger base", needle.SHORT, language) > 0.8
        assert mean("before", needle.LONG, language) < 0.1
        assert mean("after, larger base", needle.LONG, language) > 0.2
