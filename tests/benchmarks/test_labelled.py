"""The labelled documents: every row is complete, the set has no duplicates, and both splits hold both judgements."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "labelled"
LANGUAGES = sorted(path.stem for path in FOLDER.glob("??.jsonl"))
FIELDS = {
    "id": str,
    "lang": str,
    "kind": str,
    "keep": bool,
    "why": str,
    "source": str,
    "license": str,
    "split": str,
    "text": str,
}


def rows(language: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{language}.jsonl").read_text("utf-8").splitlines()]


def licenses_of_the_readme() -> set[str]:
    """First column of the README's table of licences."""
    table = (FOLDER / "README.md").read_text("utf-8").partition("| licence |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))


def without_spaces(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_row_has_the_fields_and_allowed_values(language):
    known = licenses_of_the_readme()
    for row in rows(language):
        assert {name: type(value) for name, value in row.items()} == FIELDS, row["id"]
        assert (row["lang"], row["split"]) in {(language, "dev"), (language, "test")}, row["id"]
        assert row["license"] in known, (
            f"{row['id']}: add {row['license']} to the table in benchmarks/labelled/README.md"
        )
        assert row["why"].endswith("."), row["id"]
        assert all(row[name] == row[name].strip() != "" for name in ("kind", "why", "source")), row["id"]
        assert len(row["text"]) >= 80, row["id"]


def test_ids_are_unique_and_no_document_is_there_twice():
    everything = [row for language in LANGUAGES for row in rows(language)]
    for key in ([row["id"] for row in everything], [without_spaces(row["text"]) for row in everything]):
        assert [value for value, count in Counter(key).items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_splits_hold_both_judgements_in_like_numbers(language):
    counts = Counter((row["split"], row["keep"]) for row in rows(language))
    for keep in (True, False):
        dev, test = counts["dev", keep], counts["test", keep]
        assert min(dev, test) >= 40
        assert abs(dev - test) <= 0.2 * (dev + test)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_kind_of_several_documents_with_one_judgement_is_in_both_splits(language):
    splits: dict[tuple[str, bool], list[str]] = {}
    for row in rows(language):
        splits.setdefault((row["kind"], row["keep"]), []).append(row["split"])
    assert [kind for kind, found in splits.items() if len(found) > 3 and len(set(found)) == 1] == []
