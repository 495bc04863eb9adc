"""Tells a glossary: most lines, or pairs of lines, are a term of one language and its gloss in another."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from data_prep.curation.language import HAN_OR_KANA, likeliest_language

MAX_TERM_WORDS = 5
MAX_TERM_CHARACTERS = 12  # Chinese or Japanese
MIN_ROW_SHARE = 0.6  # of the lines
_MIN_ROWS = 5
_MIN_DISTINCT = 0.8  # of the rows, by term and by gloss: a list of people and their roles repeats these
_MOST_LINES = 60  # that are read, of the middle of the text

_CODE = re.compile(r"```.*?```|`[^`\n]*`|<[^<>\n]{1,200}>|\w+://\S+", re.DOTALL)
_IDENTIFIER = re.compile(r"[a-z][A-Z]|[_\d@/\\]|\w\.\w|\(\)")  # camelCase, snake_case, x86, a/b, a.b, f()
_WORD = re.compile(r"[^\W\d_]")
_NUMBERING = re.compile(r"^[\W\d_]*")
_SEPARATOR = re.compile(r"\t+|\s+[-–—=~]+\s|——|—|\s*[:：|｜=＝→]| {2,}")
_END = re.compile(r"[。！？!?.]\s*$")
_ANNOUNCES = re.compile(r"[:：]\s*$")  # what stands in the next line
_EAST_ASIAN = re.compile(rf"{HAN_OR_KANA.pattern}(?:[\W\d_]+{HAN_OR_KANA.pattern})*")  # with the marks between


def is_glossary(text: str, languages: Collection[str], east_asian: str | None) -> bool:
    """Whether the text is rows of terms and glosses, in a column of each of two languages.

    Args:
        text: of a document.
        languages: that are configured.
        east_asian: the one of the two that is written in Chinese or Japanese characters, which part the columns.
    """
    lines = [line for line in _CODE.sub(" ", text).split("\n") if _WORD.search(line)]
    lines = lines[max(0, (len(lines) - _MOST_LINES) // 2) :][:_MOST_LINES]
    rows = list(_rows([_NUMBERING.sub("", line) for line in lines], east_asian is not None))
    terms, glosses = [term for term, _, _ in rows], [gloss for _, gloss, _ in rows]
    distinct = min(len(set(terms)), len(set(glosses)))
    if distinct < max(_MIN_ROWS, _MIN_DISTINCT * len(rows)) or sum(size for _, _, size in rows) < MIN_ROW_SHARE * len(
        lines
    ):
        return False
    found = {likeliest_language(", ".join(terms)), east_asian or likeliest_language(", ".join(glosses))}
    return len(found) == 2 and found <= set(languages)


def _rows(lines: list[str], east_asian: bool) -> Iterator[tuple[str, str, int]]:
    """Term and gloss, what is Chinese or Japanese last, and their lines: one, or two of which neither is a row."""
    row_of = _row_by_script if east_asian else _row_by_separator
    singles = [row_of(line) for line in lines]
    place = 0
    while place < len(lines):
        row, size = singles[place], 1
        if row is None and not any(singles[place : place + 2]):
            row, size = row_of("\t".join(lines[place : place + 2])), 2
        if row is not None:
            yield *row, size
        place += size if row is not None else 1


def _row_by_script(line: str) -> tuple[str, str] | None:
    own = _EAST_ASIAN.search(line)
    if own is None or _ANNOUNCES.search(line):
        return None
    first, rest = line[: own.start()], line[own.end() :]
    if _WORD.search(first):  # the term is in the other script
        apart = _SEPARATOR.search(first) or (len(own.group()) <= MAX_TERM_CHARACTERS and not _WORD.search(rest))
        return (first, line[own.start() :]) if apart and _is_term(first) else None
    return (
        (rest, own.group()) if _WORD.search(rest) and _is_term(own.group()) and not HAN_OR_KANA.search(rest) else None
    )


def _row_by_separator(line: str) -> tuple[str, str] | None:
    separator = _SEPARATOR.search(line)
    if separator is None:
        return None
    term, gloss = line[: separator.start()], line[separator.end() :]
    return (term, gloss) if _is_term(term) and _WORD.search(gloss) else None


def _is_term(text: str) -> bool:
    """Whether this is a word or a few, no sentence and no name in code."""
    if (_END.search(text) and len(text.split()) > 2) or _IDENTIFIER.search(text):
        return False
    characters = sum(map(len, HAN_OR_KANA.findall(text)))
    return characters <= MAX_TERM_CHARACTERS if characters else len(text.split()) <= MAX_TERM_WORDS
