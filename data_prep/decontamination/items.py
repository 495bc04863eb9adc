"""Reads evaluation sets of many forms: their files, the items in them, and the texts of an item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from data_prep.documents.compression import damage_named, unpacked
from data_prep.documents.json_lines import BOM, layout
from data_prep.documents.listing import KNOWN, every_file, is_named_as_documents, is_parquet
from data_prep.documents.reading import Part, parts_of, records
from recipe.base.errors import UserError


def evaluation_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of evaluation sets at `path` in a stable order, and the files beside them that are not read.

    Raises:
        UserError: nothing is there.
    """
    if not path.exists():
        raise UserError(f"--evaluation {path} does not exist; give a file or folder of evaluation sets")
    files = every_file([path])
    known = [file for file in files if is_named_as_documents(file) and file.is_file()]
    if not known:
        raise UserError(f"--evaluation {path} holds no file of an evaluation set; these are files named {KNOWN}")
    return known, [file for file in files if file not in set(known)]


def evaluation_parts(path: Path) -> list[Part]:
    return [Part(path)] if _is_one_value(path) else parts_of(path)


def _is_one_value(path: Path) -> bool:
    """Whether a file may hold one JSON array or object, by its name or its beginning."""
    return not is_parquet(path) and (".json" in path.suffixes[-2:] or layout(path) in ("array", "object"))


def items_of(part: Part, many: int) -> Iterator[Any]:
    """The items of a part of an evaluation set: its records, or those in the one JSON value of the file.

    Args:
        part: the part.
        many: a list of so many objects in the object of such a file holds items.

    Raises:
        UserError: a line, or the file, is not JSON.
    """
    if _is_one_value(part.path):
        yield from _items_of_json(part.path, many)
        return
    for raw in records(part):
        yield _value_of_line(raw, part.path) if isinstance(raw, bytes) else raw


def _items_of_json(path: Path, many: int) -> Iterator[Any]:
    """The elements of an array; an object, and the elements of long lists in it apart (SQuAD's `data`); lines of JSON."""
    with damage_named(path), open(path, "rb") as raw:
        content = unpacked(path, raw).read()
    try:
        value = _value(content)
    except ValueError:
        yield from (_value_of_line(line, path) for line in content.splitlines() if line.strip())
        return
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list) and len(inner) >= many]
        yield {key: inner for key, inner in value.items() if key not in lists}
        yield from (item for key in lists for item in value[key])
    else:
        yield from value if isinstance(value, list) else [value]


def _value_of_line(raw: bytes, path: Path) -> Any:
    try:
        return _value(raw)
    except ValueError as error:
        begins = raw[:60].decode("utf-8", "replace").strip()
        raise UserError(
            f"{path} has a line that is not JSON ({error}), which begins with {begins!r}; mend the evaluation set"
        ) from None


def _value(raw: bytes) -> Any:
    """JSON, also with the byte order mark, the NaN and the halves of surrogate pairs that only Python's reader takes."""
    raw = raw.removeprefix(BOM)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace"))
        except RecursionError:
            raise ValueError("nested too deeply") from None


def texts_of(record: Any, ignored: frozenset[str]) -> Iterator[str]:
    """Every string in a record of an evaluation set, however deep, but for those under ignored keys."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):  # a parquet column of text without its logical type; others are no text
            with suppress(UnicodeDecodeError):
                yield value.decode()
        elif isinstance(value, dict):
            waiting.extend(inner for key, inner in reversed(value.items()) if key not in ignored)
        elif isinstance(value, list):
            waiting.extend(reversed(value))
