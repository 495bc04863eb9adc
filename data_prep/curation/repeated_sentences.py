"""Sentences that a paragraph says twice: the later copies go. Rules that count repeated lines do not see them.

Such paragraphs come from pages that were joined wrongly and from generated text, in Chinese above all, where a paragraph is
one line. Copies in other paragraphs stay (a form letter, a manual, a refrain), as do short sentences.
"""

from __future__ import annotations

from itertools import pairwise

from data_prep.curation.characters import native


def drop_repeated_sentences(text: str, least: int) -> tuple[str, int]:
    """The text without later copies in a paragraph of a sentence of at least so many characters, and how many went."""
    paragraphs, dropped = text.split("\n"), 0
    for number, paragraph in enumerate(paragraphs):
        if len(paragraph) < 2 * least:
            continue
        sentences = _sentences(paragraph)
        different = {sentence.strip() for sentence in sentences}
        if len(different) < len(sentences):
            kept = _without_copies(sentences, least)
            dropped += len(sentences) - len(kept)
            paragraphs[number] = "".join(kept).rstrip()
    return ("\n".join(paragraphs), dropped) if dropped else (text, 0)


def _sentences(paragraph: str) -> list[str]:
    """Each with the blanks behind it, and the first with those before it."""
    borders = [0, *native.sentence_starts(paragraph)[1:].tolist(), len(paragraph)]
    return [paragraph[start:stop] for start, stop in pairwise(borders)]


def _without_copies(sentences: list[str], least: int) -> list[str]:
    seen: set[str] = set()
    kept = []
    for sentence in sentences:
        said = sentence.strip()
        if said not in seen or len(said) < least:
            kept.append(sentence)
        seen.add(said)
    return kept
