"""A tiny model that learned recall at 256 tokens finds needles in 2,048 once its context is extended, and hardly before."""

from __future__ import annotations

from benchmarks import needle
from recipe.evaluation.needle import LANGUAGES


def test_a_vocabulary_reads_texts_back_into_their_terms():
    vocabulary = needle.Vocabulary()
    for language in LANGUAGES.values():
        terms = [*language.needle(language.keys[3], language.passwords[5]), *language.terms]
        assert [vocabulary.terms[token] for token in vocabulary.encode(language.text(terms))] == terms
