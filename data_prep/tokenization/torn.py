"""Words that the split pattern of a tokenizer cuts before BPE, so that no token can ever hold them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from unicodedata import category, normalize

from tokenizers import Tokenizer


class Splitter:
    """What tokenizer.json cuts a text into before its model sees it."""

    def __init__(self, tokenizer_json: Path):
        self._split = Tokenizer.from_file(str(tokenizer_json)).pre_tokenizer

    def torn_share(self, texts: Iterable[str]) -> float:
        """Of the words of all texts, how many are cut inside; a word is a run of letters and the marks on them."""
        words = torn = 0
        for text in texts:
            composed = normalize("NFC", text)
            cuts = self._cuts(composed)
            for start, stop in _runs_of_letters(composed):
                words += 1
                torn += any(place in cuts for place in range(start + 1, stop))
        return torn / words if words else 0.0

    def _cuts(self, text: str) -> set[int]:
        """The places in a text, in characters, where it is cut."""
        return set() if self._split is None else {start for _, (start, _) in self._split.pre_tokenize_str(text)}


def _runs_of_letters(text: str) -> Iterator[tuple[int, int]]:
    start = None
    for place, character in enumerate(text):
        inside = category(character)[0] in "LM"
        if inside and start is None:
            start = place
        elif not inside and start is not None:
            yield start, place
            start = None
    if start is not None:
        yield start, len(text)
