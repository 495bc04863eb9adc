"""Quality rules: bounds on the statistics of a text; the reason to drop it is the first that it breaks.

A rule is a statistic of native/statistics.hpp with a smallest and a largest value, and where they come from; its
reasons are the statistic's name with `_low` or `_high`. Each language has its own file of them, since lengths,
repetition and punctuation are not the same in all; which names there are, `STATISTICS` tells. A kind of text, such as
verse, may have bounds of its own in place of those of its language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from pydantic import Field

from data_prep.curation.characters import native
from data_prep.curation.kinds import KINDS_WITH_RULES, PROSE
from recipe.base.errors import nearest
from recipe.base.strict import Section

STATISTICS: tuple[str, ...] = tuple(native.STATISTICS)
_PLACE = {name: place for place, name in enumerate(STATISTICS)}


class Bound(Section):
    min: float | None = None
    max: float | None = None
    source: str = Field(min_length=1)  # who uses this value, or why it was chosen

    def keeps_nothing(self) -> bool:
        return self.min is not None and self.max is not None and self.min > self.max


class LineRules(Section):
    """Lines and notices that go before the document is judged."""

    min_words: int = Field(0, ge=0)
    max_word_length: int = Field(1000, gt=0)
    phrases: list[str] = []  # of notices, which go, sentence by sentence: those that say little else
    cues: list[
        str
    ] = []  # whole words that speak to the reader or of the site: a short sentence with a phrase and a cue goes
    # later copies of a sentence of so many characters in one paragraph of prose go, once the document is kept
    repeated_sentence_characters: int | None = Field(None, gt=0)
    source: str = ""


class WordPairs(Section):
    """Each of the first words right before each of the second: pairs that no sentence of the language has."""

    before: list[str]
    word: list[str]


class LanguageRules(Section):
    """Everything that curation asks of the documents of one language."""

    stop_words: list[str] = []
    odd_pairs: list[WordPairs] = []  # what odd_pair_share counts
    lines: LineRules = LineRules()
    document_phrases: list[str] = []  # a document goes where they are dense or a sentence says little else
    # a document goes where several different ones are close together; lists, or files relative to this one, a phrase a line
    dense_phrases: list[str] | str = []
    strong_phrases: list[str] | str = []  # of these fewer are asked for
    dense_patterns: list[str] = []  # regular expressions that count beside the phrases
    blocked_words: str | None = None  # file, relative to this one: a word or phrase a line
    max_blocked_words: int = Field(0, ge=0)
    widen_punctuation: bool = False  # half-width marks among Han characters and kana written as full-width ones
    simplify: bool = False  # traditional Chinese characters written as simplified ones, by OpenCC
    rules: dict[str, Bound]
    kinds: dict[str, dict[str, Bound | None]] = {}  # kind of text -> rules in place of those above; null: none

    def rules_of(self, kind: str) -> dict[str, Bound]:
        """The rules of one kind of text; those of the language where the kind has none of its own."""
        return {name: bound for name, bound in {**self.rules, **self.kinds.get(kind, {})}.items() if bound is not None}

    def problems(self) -> list[str]:
        sections: dict[str, Mapping[str, Bound | None]] = {"rules": self.rules}
        sections.update({f"kinds.{kind}": rules for kind, rules in self.kinds.items()})
        bounds = [
            (f"{section}.{name}", name, bound) for section, rules in sections.items() for name, bound in rules.items()
        ]
        unknown = [(full, name) for full, name, _ in bounds if name not in _PLACE]
        empty = [full for full, _, bound in bounds if bound is not None and bound.min is None and bound.max is None]
        crossed = [full for full, _, bound in bounds if bound is not None and bound.keeps_nothing()]
        long = [word for word in self.stop_words if len(word) > 1 and _stands_alone(word)]
        asked = max(
            (bound.min or 0 for _, name, bound in bounds if bound is not None and name == "stop_words"), default=0
        )
        return (
            [
                f"kinds.{kind}: unknown kind of text '{kind}'{nearest(kind, KINDS_WITH_RULES)}"
                for kind in self.kinds
                if kind not in KINDS_WITH_RULES
            ]
            + [
                f"dense_patterns: {pattern!r} is no regular expression; correct it"
                for pattern in self.dense_patterns
                if not _compiles(pattern)
            ]
            + [f"{full}: unknown statistic '{name}'{nearest(name, STATISTICS)}" for full, name in unknown]
            + [f"{full} has neither min nor max; give one or remove it" for full in empty]
            + [f"{full} has a min above its max, which no document reaches; correct one" for full in crossed]
            + [
                f"stop_words: '{word}' has several Han characters or kana, which are words each; give one"
                for word in long
            ]
            + [
                f"rules.stop_words asks for {asked:g} of {len(self.stop_words)} stop words, which no document has; name more"
            ]
            * (asked > len(self.stop_words))
        )


class Judge:
    """Measures texts of one language and says which rule they break."""

    def __init__(self, rules: LanguageRules):
        stop_words = {native.word_hash(word) for word in rules.stop_words}
        by_kind = {kind: rules.rules_of(kind) for kind in (PROSE, *rules.kinds)}
        asks_traditional = any("traditional_share" in bounds for bounds in by_kind.values())
        odd_pairs = [
            (native.word_hash(before), native.word_hash(word))
            for pairs in rules.odd_pairs
            for before in pairs.before
            for word in pairs.word
        ]
        self._meter = native.Meter(stop_words, traditional_characters() if asks_traditional else set(), odd_pairs)
        self._bounds = {
            kind: [(_PLACE[name], name, bound.min, bound.max) for name, bound in bounds.items()]
            for kind, bounds in by_kind.items()
        }

    def reason(self, text: str, kind: str = PROSE) -> str | None:
        """Name of the first rule that drops a text of this kind, None to keep it."""
        values = self._meter.measure(text)
        for place, name, low, high in self._bounds.get(kind, self._bounds[PROSE]):
            if low is not None and values[place] < low:
                return f"{name}_low"
            if high is not None and values[place] > high:
                return f"{name}_high"
        return None


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@cache
def traditional_characters() -> frozenset[int]:
    """Code points that OpenCC writes otherwise in simplified Chinese."""
    import opencc

    han = [chr(code) for code in (*range(0x3400, 0x4DC0), *range(0x4E00, 0xA000))]
    simplified = opencc.OpenCC("t2s").convert("\n".join(han)).split("\n")
    return frozenset(ord(char) for char, other in zip(han, simplified, strict=True) if char != other)


def _stands_alone(word: str) -> bool:
    """Whether it holds characters that are words each."""
    return any(native.script_counts(word)[:2])
