"""Pages that are made of phrases which good text has one or two of: advertisements, footers, pages for search engines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_prep.curation.cleaning import Phrases
from data_prep.curation.notices import said, words_of
from data_prep.curation.rules import LanguageRules

# Different phrases have so many points, and a page that is made of them has one in so many words.
_STRONG, _WEAK = 2, 1
_POINTS = 4
_WORDS_PER_POINT = 50
_POINTS_BEFORE_PATTERNS = 2  # of the phrases: patterns alone tell nothing
_MAX_CHARACTERS = 8_000  # longer texts are not looked through


class DensePhrases:
    """The phrases and patterns of one language."""

    def __init__(self, rules: LanguageRules):
        assert isinstance(rules.dense_phrases, list)  # load_rules has read the files
        assert isinstance(rules.strong_phrases, list)
        self._phrases = Phrases([*rules.dense_phrases, *rules.strong_phrases])
        self._strong = {phrase.lower() for phrase in rules.strong_phrases}
        self._patterns: Sequence[re.Pattern[str]] = [re.compile(pattern) for pattern in rules.dense_patterns]

    def are_dense(self, text: str) -> bool:
        """Whether the text has several different phrases, close together; mentions in quotation marks aside."""
        if len(text) > _MAX_CHARACTERS:
            return False
        different = {text[start:stop].lower() for start, stop in said(text, self._phrases.find(text))}
        points = sum(_STRONG if phrase in self._strong else _WEAK for phrase in different)
        if points >= _POINTS_BEFORE_PATTERNS:
            points += sum(pattern.search(text) is not None for pattern in self._patterns)
        return points >= _POINTS and words_of(text) <= _WORDS_PER_POINT * points
