"""One JSON value a line: what orjson reads, what only Python's slower reader reads, and what is no such file at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from shlex import quote
from typing import Any

import orjson

from data_prep.documents.compression import codec_of, damage_named, unpacked
from data_prep.documents.fields import Document
from recipe.base.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json")
MAX_RECORD_BYTES = 32 * 1024**2  # of one line or text: six of the longest novels; so a worker's memory has a bound
BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 16


def parse(raw: bytes | Document) -> Any:
    """The value of a line that `records` gave; rows of parquet are values already.

    NaN and infinity, which Python writes though JSON has no such numbers, become null. Of a key that comes twice the
    last counts; integers of more than 64 bits become floats, as orjson has it.

    Raises:
        ValueError: it has none, with the reason.
    """
    if isinstance(raw, dict):
        return raw
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _parse_non_finite(raw, error)


def _parse_non_finite(raw: bytes, error: orjson.JSONDecodeError) -> Any:
    reason = ValueError(f"not JSON: {error.msg}")
    if not (b"NaN" in raw or b"Infinity" in raw or "infinity" in error.msg):
        raise reason from None
    try:
        value = json.loads(raw, parse_constant=lambda name: None, parse_float=_finite, parse_int=_of_64_bits)
        orjson.dumps(value)  # halves of surrogate pairs, which Python's reader lets through
    except (ValueError, TypeError, RecursionError):
        raise reason from None
    return value


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _of_64_bits(text: str) -> int | float | None:
    return int(text) if len(text) <= 20 and -(2**63) <= int(text) < 2**64 else _finite(text)


# layout of a file -> what to say of it, and the command that makes lines of it
_CONVERT = {
    "array": ("is one JSON array", "jq -c '.[]'"),
    "object": ("is one JSON object over several lines", "jq -c ."),
    "commas": ("ends its lines with a comma", "sed 's/,[[:space:]]*$//'"),
    "utf-16": ("is UTF-16", "iconv -f utf-16 -t utf-8"),
    "utf-32": ("is UTF-32", "iconv -f utf-32 -t utf-8"),
    "returns": ("ends its lines with a carriage return alone", "tr '\\r' '\\n'"),
}


def check_lines(path: Path) -> None:
    """Raises UserError if a file of a known suffix does not hold one JSON value a line, by its beginning."""
    what, convert = _CONVERT.get(layout(path), ("", ""))
    if what:
        codec = codec_of(path.name)
        name = quote(str(path))
        command = f"{codec} -dc {name} | {convert}" if codec else f"{convert} < {name}"
        raise UserError(f"{path} {what}, not one JSON object a line; convert it: {command} > NAME.jsonl")


def layout(path: Path) -> str:
    """`lines`, `empty`, or what else the file is by its beginning."""
    with damage_named(path), open(path, "rb") as raw:
        head = unpacked(path, raw).read(_HEAD_BYTES)
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or _ascii_of(head, 4):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _ascii_of(head, 2):
        return "utf-16"
    text = head.removeprefix(BOM).lstrip()
    line, newline, _ = text.partition(b"\n")
    if text.startswith(b"["):
        return "array" if text[1:].lstrip().startswith(b"{") else "lines"
    if text.startswith(b"{") and b"\r{" in line:
        return "returns"
    if text.startswith(b"{") and line.rstrip().endswith(b",") and _is_value(line.rstrip()[:-1]):
        return "commas"
    if text.startswith(b"{") and newline and line.rstrip().endswith((b"{", b"[", b",")) and not _is_value(line):
        return "object"
    return "lines" if text else "empty"


def _ascii_of(head: bytes, size: int) -> bool:
    """Whether the first character is a bracket of `size` bytes."""
    return any(head[:size] in (bracket.ljust(size, b"\0"), bracket.rjust(size, b"\0")) for bracket in (b"{", b"["))


def _is_value(line: bytes) -> bool:
    try:
        parse(line)
    except ValueError:
        return False
    return True
