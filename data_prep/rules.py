"""Quality rules: each looks at one document and returns the reason to drop it, or None.

English rules follow Gopher (arXiv 2112.11446, appendix A.1.1); the Chinese ones are their equivalents by
characters instead of words. Thresholds come from the curate configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from data_prep.language import HAN, WORD


class Thresholds(BaseModel):
    """The thresholds of one language; a rule whose threshold is null is off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    script: str = Field(pattern="^(latin|han)$")
    min_words: int | None = None  # latin: words; han: Han characters
    max_words: int | None = None
    min_mean_word_length: float | None = None  # latin only, characters
    max_mean_word_length: float | None = None
    min_word_share: float | None = None  # latin: words with a letter; han: Han among non-blank characters
    max_symbol_share: float | None = None  # '#' and '...' per word (latin) or per Han character
    max_duplicate_line_share: float | None = None  # characters in repeated lines
    max_top_bigram_share: float | None = None  # characters in the commonest pair of words / Han characters
    stop_words: list[str] = []  # at least `min_stop_words` different ones must occur
    min_stop_words: int = 0


class Text:
    """A document's text with the counts that several rules use."""

    def __init__(self, text: str, thresholds: Thresholds):
        self.text = text
        self.words = WORD.findall(text) if thresholds.script == "latin" else HAN.findall(text)
        self.lines = [line.strip() for line in text.split("\n") if line.strip()]


def too_short(doc: Text, limits: Thresholds) -> bool:
    return limits.min_words is not None and len(doc.words) < limits.min_words


def too_long(doc: Text, limits: Thresholds) -> bool:
    return limits.max_words is not None and len(doc.words) > limits.max_words


def word_length(doc: Text, limits: Thresholds) -> bool:
    mean = sum(map(len, doc.words)) / max(1, len(doc.words))
    low, high = limits.min_mean_word_length, limits.max_mean_word_length
    return (low is not None and mean < low) or (high is not None and mean > high)


def too_few_words(doc: Text, limits: Thresholds) -> bool:
    if limits.min_word_share is None:
        return False
    if limits.script == "han":
        share = len(doc.words) / max(1, len("".join(doc.text.split())))
    else:
        share = sum(any(ch.isalpha() for ch in word) for word in doc.words) / max(1, len(doc.words))
    return share < limits.min_word_share


def symbols(doc: Text, limits: Thresholds) -> bool:
    if limits.max_symbol_share is None:
        return False
    count = doc.text.count("#") + doc.text.count("...") + doc.text.count("…")
    return count / max(1, len(doc.words)) > limits.max_symbol_share


def duplicate_lines(doc: Text, limits: Thresholds) -> bool:
    if limits.max_duplicate_line_share is None:
        return False
    repeated = sum(len(line) * (n - 1) for line, n in Counter(doc.lines).items())
    return repeated / max(1, sum(map(len, doc.lines))) > limits.max_duplicate_line_share


def repeated_bigram(doc: Text, limits: Thresholds) -> bool:
    if limits.max_top_bigram_share is None or len(doc.words) < 2:
        return False
    (pair, count), *_ = Counter(zip(doc.words, doc.words[1:], strict=False)).most_common(1)
    return count * sum(map(len, pair)) / sum(map(len, doc.words)) > limits.max_top_bigram_share


def too_few_stop_words(doc: Text, limits: Thresholds) -> bool:
    if limits.script == "han":
        found = sum(word in doc.text for word in limits.stop_words)
    else:
        found = len({word.lower() for word in doc.words} & set(limits.stop_words))
    return found < limits.min_stop_words


# In the order they are asked; a document's reason is the first that applies. Cheap ones first.
RULES: tuple[Callable[[Text, Thresholds], bool], ...] = (
    too_short,
    too_long,
    word_length,
    too_few_words,
    symbols,
    too_few_stop_words,
    duplicate_lines,
    repeated_bigram,
)


def reason_to_drop(text: str, limits: Thresholds) -> str | None:
    """Name of the first rule that drops this text, or None to keep it."""
    doc = Text(text, limits)
    return next((rule.__name__ for rule in RULES if rule(doc, limits)), None)
