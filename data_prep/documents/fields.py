"""What the fields of a record become in a document: an `id` and a `text`, and labels that are strings or absent.

id       a string; integers become strings; a float or a boolean is no id
text     a string
lang, source, url, license
         a string, an integer as a string, a list of one of them, absent where null or empty; several licences are
         joined; anything else makes the record a bad one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from pydantic import Field

from recipe.base.strict import Section

Document = dict[str, Any]
Named = str | list[str] | None  # a field of the input, several to be joined, or none
LABELS = ("lang", "source", "url", "license")
DOCUMENT_FIELDS = ("id", "text", *LABELS)
_DEPTH = 250
MAX_CHARACTERS = 32 * 1024**2  # of a text: six of the longest novels; so a worker's memory has a bound


class Fields(Section):
    """Our name of a field -> its name in the input. A dot leads into a field; null leaves ours out.

    A text may be several fields, each on lines of its own, such as a sentence and its translation.
    """

    id: str | None = "id"  # null: records are numbered, whatever ids they have
    text: str | Annotated[list[str], Field(min_length=1)] = "text"
    lang: str | None = "lang"
    source: str | None = "source"
    url: str | None = "url"
    license: str | None = "license"


class Renames:
    """Gives the fields of records our names.

    A field of the very name goes before one that a dot leads into. What was there under our name goes. A field is
    moved, but for an id that is also a label (`id: url`, `url: id`).
    """

    def __init__(self, fields: Mapping[str, Named] | None):
        all_named = {ours: theirs for ours, theirs in (fields or {}).items() if theirs != ours}
        self._joined = {ours: theirs for ours, theirs in all_named.items() if isinstance(theirs, list)}
        self._renames = {ours: theirs for ours, theirs in all_named.items() if not isinstance(theirs, list)}
        named = {name for theirs in (fields or {}).values() for name in names_of(theirs)}
        self.top_names = {name for full in named for name in (full, full.split(".")[0])} | set(DOCUMENT_FIELDS)
        self.numbered = "id" in self._renames and self._renames["id"] is None

    def __bool__(self) -> bool:
        return bool(self._renames or self._joined)

    def apply(self, record: Document) -> None:
        values: dict[str, Any] = {ours: _lines(record, theirs) for ours, theirs in self._joined.items()}
        moved = [_holder(record, name) for theirs in self._joined.values() for name in theirs]
        for ours, theirs in self._renames.items():
            holder, key = _holder(record, theirs) if theirs else (None, "")
            values[ours] = None if holder is None else holder[key]
            stays = theirs in LABELS if ours == "id" else theirs == "id" and "id" not in self._renames
            if holder is not None and not stays:
                moved.append((holder, key))
        for holder, key in moved:
            if holder is not None:
                holder.pop(key, None)
        for ours, value in values.items():
            record.pop(ours, None)
            if value is not None:
                record[ours] = value

    def missing(self, name: str) -> str:
        """Why a record without the field `name` is none."""
        if name in self._joined:
            return (
                f"a field of {', '.join(self._joined[name])}, which fields.{name} joins, is missing, empty or no string"
            )
        theirs = self._renames.get(name)
        if theirs is not None:
            return f"missing field '{theirs}', which fields.{name} names"
        hint = "; ingest.py numbers records without ids" if name == "id" else ""
        return f"missing field '{name}'{hint}"


def names_of(theirs: Named) -> list[str]:
    """The names in the input that one of our names stands for."""
    return theirs if isinstance(theirs, list) else [theirs] if theirs else []


def _lines(record: Document, names: list[str]) -> str | None:
    """The values of the fields on lines of their own; None where one is missing, empty or no string."""
    holders = [_holder(record, name) for name in names]
    values = [_string(holder[key]) if holder is not None else None for holder, key in holders]
    return "\n".join(value.strip() for value in values if value) if all(map(_has_text, values)) else None


def _has_text(value: str | None) -> bool:
    return bool(value and not value.isspace())


def _holder(record: Any, path: str) -> tuple[Document | None, str]:
    """The object that holds the field to which the path leads, and the field's name in it."""
    if path in record:
        return record, path
    for at, character in enumerate(path):
        inner = record.get(path[:at]) if character == "." else None
        if isinstance(inner, dict):
            holder, key = _holder(inner, path[at + 1 :])
            if holder is not None:
                return holder, key
    return None, path


_AS_THEY_ARE = Renames(None)


def defect(
    record: Document, renames: Renames = _AS_THEY_ARE, max_characters: int = MAX_CHARACTERS, raw: bytes = b""
) -> str | None:
    """Make a document of a record, in place; the reason if it is none. `raw`: the line that it is from, if any."""
    for name in ("id", "text"):
        value = record.get(name)
        if type(value) is not str:
            if value is None:
                return renames.missing(name)
            text = _string(value) if name == "id" or isinstance(value, bytes) else None
            if text is None:
                return f"field '{name}' is {_kind(value)}, not a string" + " or an integer" * (name == "id")
            record[name] = value = text
        if not value or value.isspace():
            return f"field '{name}' is empty"
        if len(value) > max_characters:
            return f"field '{name}' is longer than {max_characters:,} characters"
    for value in record.values():  # most records hold nothing but text, and this is their whole cost
        if type(value) is not str or not value:
            return _mend_labels(record) or _too_deep(record, raw)
    return None


def _mend_labels(record: Document) -> str | None:
    for name in LABELS:
        value = record.get(name)
        if (type(value) is not str or not value) and name in record:
            reason = _mend_label(record, name)
            if reason is not None:
                return reason
    return None


def _too_deep(record: Document, raw: bytes) -> str | None:
    """Whether orjson reads the line, up to 1,024 lists and objects in each other, and could not write it, up to 254."""
    if raw.count(b"[") + raw.count(b"{") > _DEPTH:
        try:
            orjson.dumps(record)
        except TypeError:
            return "nested too deeply to be written again"
    return None


def _mend_label(record: Document, name: str) -> str | None:
    value = record[name]
    values = [item for item in (value if isinstance(value, list) else [value]) if item is not None and item != ""]
    texts = [text for text in map(_string, values) if text is not None]
    if len(texts) < len(values):
        return f"field '{name}' is {_kind(value)}, not a string"
    if len(texts) > 1 and name != "license":
        return f"field '{name}' is a list of {len(texts)}, not a string"
    if texts:
        record[name] = ", ".join(texts)
    else:
        del record[name]
    return None


def _string(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def _kind(value: Any) -> str:
    if isinstance(value, bytes):
        return "bytes that are not UTF-8"
    if isinstance(value, float):
        return "float (or an integer of more than 64 bits)"
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    return type(value).__name__
