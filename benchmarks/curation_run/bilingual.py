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
from recipe.base.tables import markdown_table

PLANTED = Path(__file__).parents[1] / "labelled" / "bilingual.jsonl"
LANGUAGES = ("en", "zh")


def planted() -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in PLANTED.read_bytes().splitlines()]


def label_of(text: str) -> str | None:
    return bilingual_label(text, language_shares(text), LANGUAGES)


def measure(peers: Path) -> dict[str, Any]:
    """For each label: documents, those found as any label and as their own; and documents of one language found.

    Args:
        peers: as for the other sections; none of the peers looks for such documents.
    """
    del peers
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


def table(result: dict[str, Any]) -> str:
    """As Markdown: a row for each way to join two languages, and one for the documents of one language."""
    rows = [
        [label, str(of["documents"]), str(of["found"]), str(of["labelled_right"])]
        for label, of in result["labels"].items()
    ]
    rows.append(["one language", str(result["monolingual_documents"]), str(result["wrongly_found"]), ""])
    return markdown_table(["documents", "number", "taken for bilingual", "with the right label"], rows)
