"""What curation counts beside documents and bytes: what it changed in those that stay, and what they are, by language."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.curation.curator import Verdict
from data_prep.curation.rules import PROSE


class Numbers:
    """The numbers of one part; those of all parts are added up (`data_prep/core/tally.py`)."""

    def __init__(self) -> None:
        self.lines_dropped, self.sentences_dropped, self.marks_widened = Counter[str](), Counter[str](), Counter[str]()
        self.masked = defaultdict[str, Counter[str]](Counter)  # language -> kind of personal data
        self.kinds = defaultdict[str, Counter[str]](Counter)  # language -> kind of text -> documents
        self.bilingual: dict[str, dict[str, Counter[str]]] = {}  # language -> label -> documents and bytes
        self.confidence = defaultdict[str, Counter[str]](Counter)  # of all documents: share of the main language
        self.log2_characters = defaultdict[str, Counter[str]](Counter)

    def add(self, verdict: Verdict) -> None:
        document = verdict.document
        language = document["lang"]
        self.confidence[language][f"{int(verdict.confidence * 20) / 20:.2f}"] += 1
        if verdict.reason is not None:
            return
        self.log2_characters[language][str(len(document["text"]).bit_length())] += 1
        self.lines_dropped[language] += verdict.lines_dropped
        self.sentences_dropped[language] += verdict.sentences_dropped
        self.marks_widened[language] += verdict.marks_widened
        self.masked[language].update(verdict.masked)
        label = document.get("bilingual")
        self.kinds[language]["bilingual" if label else document.get("kind", PROSE)] += 1
        if label:
            labels = self.bilingual.setdefault(language, {})
            labels.setdefault(label, Counter()).update(documents=1, bytes=len(document["text"].encode()))

    def values(self) -> dict[str, Any]:
        return dict(vars(self))


def bilingual_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """A line for each language that says how many of its documents join two languages, and how."""
    for language, labels in results.get("bilingual", {}).items():  # a folder that an older version finished has none
        documents, size = (sum(numbers[name] for numbers in labels.values()) for name in ("documents", "bytes"))
        how = ", ".join(f"{label} {numbers['documents']:,}" for label, numbers in labels.items())
        yield f"bilingual {documents:>7,}  mostly in {language}, {size / 1e6:.1f} MB: {how}"
