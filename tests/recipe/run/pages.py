"""What docs/run_folder.md says of the files of a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from recipe.run.records import VERSION_KEY
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "run_folder.md"


def section(title: str) -> str:
    """The part of the page about a file."""
    _, heading, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert heading, f"{PAGE.name} has no section {title}"
    return rest.partition("\n## ")[0]


def rows(text: str, header: str) -> list[list[str]]:
    """The rows of all tables whose first column has a header."""
    tables = re.findall(rf"^\| {header} \|.*\n\|[-:| ]+\|\n((?:\|.*\n?)*)", text, re.M)
    return [[cell.strip() for cell in row.strip("|").split(" |")] for table in tables for row in table.splitlines()]


def documented(title: str, header: str = "field") -> set[str]:
    return {name for row in rows(section(title), header) for name in re.findall(r"`([^`]+)`", row[0])}


def names_of(record: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields of a record, those of objects in it as `object.field`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{key}.")
        elif prefix + key != VERSION_KEY:
            yield prefix + key


def undocumented(title: str, record: dict[str, Any]) -> list[str]:
    """The fields of a record that the page does not list. A field of the page with type object covers what is in it."""
    patterns = [re.escape(name).replace(r"\*", "[^.]+") for name in documented(title)]
    known = re.compile(rf"({'|'.join(patterns)})(\..*)?")
    return [name for name in names_of(record) if not known.fullmatch(name)]
