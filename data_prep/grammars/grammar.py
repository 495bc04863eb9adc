"""Documents of a small grammar, near copies of them, and text that curation should refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from data_prep.grammars import chinese, english, german, japanese


class Grammar:
    """One language's generator of documents and of defective ones."""

    def __init__(self, lang: str, words: dict[str, Any], sentence: Callable[..., str], joint: str):
        self.lang, self.words, self._sentence, self._joint = lang, words, sentence, joint

    def document(self, rng: random.Random) -> str:
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        paragraphs = []
        for _ in range(rng.randint(2, 5)):
            paragraphs.append(
                self._joint.join(self._sentence(rng, self.words, topic, place) for _ in range(rng.randint(3, 7)))
            )
        return "\n\n".join(paragraphs)

    def near_copy(self, rng: random.Random, text: str) -> str:
        """The document with one sentence replaced and a note at the end."""
        sentences = text.split(self._joint) if self._joint else text.split("。")
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        new = self._sentence(rng, self.words, topic, place)
        sentences[rng.randrange(len(sentences))] = new.split(self._joint)[0] if self._joint else new.rstrip("。")
        return (self._joint or "。").join(sentences)

    def junk(self, rng: random.Random) -> tuple[str, str]:
        """(kind, text) of something that curation should refuse."""
        kind = rng.choice(["fragment", "symbols", "repetition", "list", "other_script"])
        topic, place = rng.choice(sorted(self.words["topics"])), rng.choice(self.words["places"])
        sentence = self._sentence(rng, self.words, topic, place)
        if kind == "fragment":
            return kind, sentence
        if kind == "symbols":
            return kind, "\n".join("### ... # " + sentence[:12] + " # ... ###" for _ in range(30)) + self.document(rng)
        if kind == "repetition":
            return kind, "\n".join([sentence] * 25)
        if kind == "list":
            nouns = [noun for nouns in self.words["topics"].values() for noun in nouns]
            return kind, ", ".join(rng.choice(nouns) for _ in range(120))
        return kind, " ".join(
            rng.choice(["старый", "город", "река", "мост", "дорога", "книга", "вечер"]) for _ in range(120)
        )


GRAMMARS = {
    "en": Grammar("en", english.WORDS, english.sentence, " "),
    "zh": Grammar("zh", chinese.WORDS, chinese.sentence, ""),
    "de": Grammar("de", german.WORDS, german.sentence, " "),
    "ja": Grammar("ja", japanese.WORDS, japanese.sentence, ""),
}
