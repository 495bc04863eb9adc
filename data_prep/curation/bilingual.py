"""Finds documents that join two of the configured languages, and says how.

parallel     passages of one language and their counterparts in the other take turns: sentences, lines, columns
translation  a whole text, and then the whole of it in the other language
glossary     a list of terms, each with its gloss in the other language
switched     both languages carry the text and do not translate each other: within sentences or from one to the next

Such documents teach a model to translate: without them, 2% of a corpus, it loses 56% of its BLEU, and the parallel ones
alone restore 91% (Shao et al., arXiv 2601.00364, abstract). Terms and names of another language in a text, quotations,
code and addresses join nothing.

A text is read as a sequence of passages, each in one language. Lengths tell whether passages translate each other, as
sentences are aligned by length alone (Gale and Church, Computational Linguistics 19, 1993).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from data_prep.curation.characters import native
from data_prep.curation.glossaries import MAX_TERM_CHARACTERS, MAX_TERM_WORDS, MIN_ROW_SHARE, is_glossary
from data_prep.curation.language import (
    EAST_ASIAN,
    HAN_WEIGHT,
    MIN_PROSE_LETTERS,
    prose_language,
    readable,
)

LABELS = ("parallel", "translation", "switched", "glossary")

_MIN_SHARE = 0.15  # of the smaller language; quotations in a text have less
_MIN_CARRYING_SHARE = 0.25  # of it, where it neither translates nor changes within sentences
_MIN_LETTERS = 40  # of it, a Chinese character as 2.5: a sentence or two
_MIN_SCRIPT_SHARE = 0.05  # of a text by its scripts, to look at it closely
_MIN_PHRASE = 3  # words of another language in a row: fewer are a term or a name
_MIN_TURNS = 2  # pairs of passages, so that these take turns on lines of their own
_MIN_TURNS_IN_LINE = 4  # in running text, where fewer are a matter of chance
_MIN_PAIRED = 0.6  # of a parallel text: in passages with a counterpart
_MAX_RATIO = 2.5  # of the lengths of a passage and its translation
_MIN_PURITY = 0.9  # of either half of a text with its translation: in its language
_MIN_SWITCHED = 0.25  # of the sentences, and so many at least
_MIN_SWITCHED_SENTENCES = 3


class Passage(NamedTuple):
    language: str
    line: int
    sentence: int
    letters: float  # a Chinese or Japanese character as several


def bilingual_label(text: str, shares: Mapping[str, float], languages: Collection[str]) -> str | None:
    """How a text joins two of the languages, None of a text that does not.

    Args:
        text: of a document.
        shares: of its languages, by `language_shares`.
        languages: that are configured.
    """
    by_script = max(EAST_ASIAN, key=lambda language: shares.get(language, 0.0))
    east_asian = by_script if by_script in languages and shares.get(by_script, 0.0) >= _MIN_SCRIPT_SHARE else None
    if not _may_join(text, shares, languages, east_asian):
        return None
    text = readable(text)
    found, sentences, lines, rows = native.passages(
        text, _MIN_PHRASE, MIN_PROSE_LETTERS, MAX_TERM_WORDS, MAX_TERM_CHARACTERS
    )
    if (east_asian is None or rows >= MIN_ROW_SHARE * lines) and is_glossary(text, languages, east_asian):
        return "glossary"
    passages = [
        Passage(language, line, sentence, letters * HAN_WEIGHT if own else letters)
        for own, line, sentence, start, stop, letters in found
        if (language := east_asian if own else prose_language(text[start:stop])) is not None and language in languages
    ]
    return _arrangement(passages, sentences)


def _may_join(text: str, shares: Mapping[str, float], languages: Collection[str], east_asian: str | None) -> bool:
    """Whether two configured languages can be the text's, and no third: no more than counts, on which most texts end."""
    if any(share >= _MIN_SHARE for language, share in shares.items() if language not in languages):
        return False
    if sum(shares.get(language, 0.0) >= _MIN_SCRIPT_SHARE for language in languages) > 1:
        return True
    if east_asian is None or len(languages) < 2:
        return False
    han, kana, _, letters = native.script_counts(text)
    own, others = (han + kana) * HAN_WEIGHT, letters - han - kana
    return min(own, others) > _MIN_SCRIPT_SHARE * max(own, others)


def _arrangement(passages: list[Passage], sentences: int) -> str | None:
    """How the two languages with most letters are arranged, None where the second has too few."""
    by_language = _letters_by_language(passages)
    pair = sorted(by_language, key=by_language.__getitem__, reverse=True)[:2]
    total = sum(by_language.values())
    if len(pair) < 2 or by_language[pair[1]] < max(_MIN_LETTERS, _MIN_SHARE * total):
        return None
    passages = [passage for passage in passages if passage.language in pair]
    runs = _runs(passages)
    if _is_translation(runs):
        return "translation"
    if _switched(passages) >= max(_MIN_SWITCHED_SENTENCES, _MIN_SWITCHED * sentences):
        return "switched"
    if _is_parallel(runs, total, _MIN_TURNS_IN_LINE if _is_running(passages) else _MIN_TURNS):
        return "parallel"
    return "switched" if by_language[pair[1]] >= _MIN_CARRYING_SHARE * total else None


def _runs(passages: Iterable[Passage]) -> list[Passage]:
    """Passages of one language in a row as one."""
    runs = (list(run) for _, run in groupby(passages, attrgetter("language")))
    return [run[0]._replace(letters=sum(passage.letters for passage in run)) for run in runs]


def _letters_by_language(passages: Iterable[Passage]) -> dict[str, float]:
    letters: dict[str, float] = defaultdict(float)
    for passage in passages:
        letters[passage.language] += passage.letters
    return letters


def _switched(passages: list[Passage]) -> int:
    """Sentences whose language changes within, but for a line that is a sentence and its counterpart."""
    switched = 0
    for _, on_line in groupby(passages, attrgetter("line")):
        line = list(on_line)
        sentences = [list(sentence) for _, sentence in groupby(line, attrgetter("sentence"))]
        changing = [sentence for sentence in sentences if len(sentence) > 1]
        switched += 0 if len(line) == 2 and _are_alike(*line) else len(changing)
    return switched


def _is_running(passages: list[Passage]) -> bool:
    """Whether most of the text is in lines whose language changes more than once."""
    lines = [list(line) for _, line in groupby(passages, attrgetter("line"))]
    running = sum(passage.letters for line in lines if len(_runs(line)) > 2 for passage in line)
    return running > sum(passage.letters for passage in passages) / 2


def _is_translation(runs: list[Passage]) -> bool:
    """Whether some place parts the text into two of about one length, each in its language."""
    before, after = dict.fromkeys((run.language for run in runs), 0.0), _letters_by_language(runs)
    for run in runs:
        before[run.language] += run.letters
        after[run.language] -= run.letters
        first, second = _half(before), _half(after)
        if first and second and first.language != second.language and _are_alike(first, second):
            return True
    return False


def _half(letters: Mapping[str, float]) -> Passage | None:
    """Half of a text as one passage, None where it is not in one language."""
    language = max(letters, key=letters.__getitem__)
    return (
        Passage(language, 0, 0, letters[language]) if letters[language] > _MIN_PURITY * sum(letters.values()) else None
    )


def _is_parallel(runs: list[Passage], total: float, turns: int) -> bool:
    """Whether most of the text is in runs that have their counterpart behind them, from the first on or the second."""
    for first in (0, 1):
        paired = [one.letters + other.letters for one, other in _pairs(runs[first:]) if _are_alike(one, other)]
        if len(paired) >= turns and sum(paired) >= _MIN_PAIRED * total:
            return True
    return False


def _pairs(runs: list[Passage]) -> Iterator[tuple[Passage, Passage]]:
    return zip(runs[::2], runs[1::2], strict=False)


def _are_alike(one: Passage, other: Passage) -> bool:
    """Whether their lengths are those of a passage and its translation."""
    return max(one.letters, other.letters) <= _MAX_RATIO * min(one.letters, other.letters)
