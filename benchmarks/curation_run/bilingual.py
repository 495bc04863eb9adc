"""How many of the planted documents that join English and Chinese are found, and how many others are taken for one.

The documents are in benchmarks/labelled/bilingual.jsonl: written for this purpose, in the four ways to join two languages,
and in one language with terms, names, quotations, references and code of the other. `made` says how each was put together.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from data_prep.curation.bilingual import LABELS, bilingual_label
from data_prep.curation.language import language_shares

PLANTED = Path(__file__).parents[1] / "labelled" / "bilingual.jsonl"
LANGUAGES = ("en", "zh")


def planted() -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in PLANTED.read_bytes().splitlines()]


def label_of(text: str) -> str | None:
    return bilingual_label(text, language_shares(text), LANGUAGES)


def measure() -> dict[str, Any]:
    """For each label: documents, those found as any label and as their own; and documents of one language found."""
    results = [(document["label"], label_of(document["text"])) for document in planted()]
    counts = Counter(results)
    labels = {}
    for label in LABELS:
        documents = sum(number for (true, _), number in counts.items() if true == label)
        missed, right = counts[label, None], counts[label, label]
        labels[label] = {"documents": documents, "found": documents - missed, "labelled_right": right}
    monolingual = sum(number for (true, _), number in counts.items() if true is None)
    return {
        "labels": labels,
        "found_share": sum(of["found"] for of in labels.values()) / sum(of["documents"] for of in labels.values()),
        "monolingual_documents": monolingual,
        "wrongly_found": monolingual - counts[None, None],
        "wrongly_found_share": 1 - counts[None, None] / monolingual,
    }
