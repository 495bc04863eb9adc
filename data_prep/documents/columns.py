"""Rows of parquet as JSON can hold them.

  timestamp, date, time   ISO 8601 text, with Z where the column has a time zone
  decimal                 text
  duration                text, its number of the column's unit
  float                   NaN and infinity become null
  binary                  base64, but text in a document's own fields
  map                     an object, its keys as text
  list view               a list
  uuid                    text; another extension type is what it is stored as

Text that is not UTF-8 stays bytes in a document's own fields, where it makes the record a bad one, and is left out where
they come from inside a column; elsewhere its broken bytes become U+FFFD, in the keys of a map \\x..
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from recipe.base.errors import UserError

Finish = Callable[[Any], Any]  # a value of `to_pylist`, not None, as JSON can hold it
_UNREADABLE = (ValueError, TypeError, ArithmeticError, NotImplementedError)  # Arrow's own errors are of these


class Columns:
    """Converts the batches of one file.

    Args:
        path: of the file, for messages.
        schema: of the file.
        text_columns: paths of the binary values that are text; a dot leads into a column.

    Raises:
        UserError: two columns have one name.
    """

    def __init__(self, path: Path, schema: pa.Schema, text_columns: Collection[str]):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise UserError(f"{path} has several columns of the name {twice[0]}; rename or drop one of them")
        self._path, self._schema = path, schema
        self._cast = [_is_cast(field.type) for field in schema]
        self._finish = [_Finishes(text_columns).of(field.type, field.name) for field in schema]
        self._finish_bytes = [
            _Finishes(text_columns, texts_as_bytes=True).of(field.type, field.name) for field in schema
        ]

    def rows(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        if any(self._cast):
            columns = [self._converted(number, column) for number, column in enumerate(batch.columns)]
            batch = pa.RecordBatch.from_arrays(columns, names=self._schema.names)
        try:
            rows = batch.to_pylist()
        except _UNREADABLE:  # such as text that is not UTF-8, which parquet does not promise
            return self._rows_by_columns(batch)
        for name, finish in zip(self._schema.names, self._finish, strict=True):
            if finish is not None:
                for row in rows:
                    if row[name] is not None:
                        row[name] = finish(row[name])
        return rows

    def _converted(self, number: int, column: pa.Array) -> pa.Array:
        if not self._cast[number]:
            return column
        try:
            return _cast(column)
        except _UNREADABLE as error:
            raise self._unreadable(number, error) from None

    def _rows_by_columns(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        columns = []
        for number, column in enumerate(batch.columns):
            try:
                columns.append(self._values(number, column))
            except _UNREADABLE as error:
                raise self._unreadable(number, error) from None
        return [dict(zip(self._schema.names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _values(self, number: int, column: pa.Array) -> list[Any]:
        """A column's values as JSON can hold them, some of which may be text that is not UTF-8."""
        finish = self._finish[number]
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:
            target = _plain(_utc(_texts_as_bytes(self._schema.field(number).type)))
            values, finish = _without_views(column).cast(target).to_pylist(), self._finish_bytes[number]
        return values if finish is None else [None if value is None else finish(value) for value in values]

    def _unreadable(self, number: int, error: Exception) -> UserError:
        field = self._schema.field(number)
        return UserError(
            f"{self._path}: column {field.name} of type {field.type} cannot be read ({error}); drop it from the file, or "
            "write it as text"
        )


def _cast(column: pa.Array) -> pa.Array:
    """The column with types whose Python values JSON can hold, or `_finish` can mend."""
    if types.is_floating(column.type):
        column = column.cast(pa.float32()) if types.is_float16(column.type) else column
        return pc.if_else(pc.is_finite(column), column, None)
    column = _without_views(column)
    for target in (_utc(column.type), _plain(_utc(column.type))):
        column = column.cast(target)
    return column


def _without_views(column: pa.Array) -> pa.Array:
    """The column with lists for its list views, which Arrow's own cast gives too short a buffer (of version 26)."""
    kind = column.type
    if not _has_views(kind):
        return column
    if types.is_struct(kind):
        fields = [_without_views(field) for field in column.flatten()]
        names = [field.name for field in kind]
        return pa.StructArray.from_arrays(fields, names=names, mask=column.is_null())
    if not (_is_view(kind) or types.is_list(kind) or types.is_large_list(kind)):
        return column
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    ends = pa.array(np.cumsum([0, *lengths], dtype=np.int64))
    return pa.LargeListArray.from_arrays(ends, _without_views(column.flatten()), mask=column.is_null())


def _has_views(kind: pa.DataType) -> bool:
    return _is_view(kind) or any(_has_views(kind.field(number).type) for number in range(kind.num_fields))


def _is_view(kind: pa.DataType) -> bool:
    return types.is_list_view(kind) or types.is_large_list_view(kind)


def _is_cast(kind: pa.DataType) -> bool:
    return types.is_floating(kind) or _plain(_utc(kind)) != kind


def _utc(kind: pa.DataType) -> pa.DataType:
    if types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")  # Arrow writes others with an offset, by a database that may be missing
    return _inside(kind, _utc)


def _plain(kind: pa.DataType) -> pa.DataType:
    if types.is_temporal(kind) or types.is_decimal(kind):
        return pa.string()
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_float16(kind):
        return pa.float32()
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return _plain(kind.storage_type)
    return _inside(kind, _plain)


def _inside(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with the types in it changed."""
    if types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(change(kind.key_type), change(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(change(kind.value_type), kind.list_size)
    if types.is_large_list(kind) or _is_view(kind):
        return pa.large_list(change(kind.value_type))
    if types.is_list(kind):
        return pa.list_(change(kind.value_type))
    return kind


def _texts_as_bytes(kind: pa.DataType) -> pa.DataType:
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return _texts_as_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and not _is_uuid(kind):
        return _texts_as_bytes(kind.storage_type)
    return _inside(kind, _texts_as_bytes)


@dataclass(frozen=True)
class _Finishes:
    """What mends the Python values of cast columns.

    Args:
        texts: paths of the binary values that are text: a column's name, and after dots those of fields in it.
        texts_as_bytes: text comes as bytes, since some of it is not UTF-8.
    """

    texts: Collection[str]
    texts_as_bytes: bool = False

    def of(self, kind: pa.DataType, path: str, nested: bool = False) -> Finish | None:
        """For values of a column, or in one, that had this type; None where nothing is to be mended."""
        if types.is_dictionary(kind):
            return self.of(kind.value_type, path, nested)
        if _is_uuid(kind):
            return str
        if isinstance(kind, pa.BaseExtensionType):
            return self.of(kind.storage_type, path, nested)
        if types.is_timestamp(kind):
            return lambda text: text if text.startswith("<") else text.replace(" ", "T", 1)  # <value out of range: ...>
        if _is_binary(kind) or (self.texts_as_bytes and _is_text(kind)):
            if path in self.texts:
                return _text_or_none if nested else _decoded
            return _replaced if _is_text(kind) else _base64
        if types.is_struct(kind):
            fields = {field.name: self.of(field.type, f"{path}.{field.name}", True) for field in kind}
            return _finish_struct({name: finish for name, finish in fields.items() if finish is not None})
        if types.is_map(kind):
            return self._of_map(kind, path)
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or _is_view(kind):
            item = self.of(kind.value_type, path, True)
            return None if item is None else lambda values: [None if v is None else item(v) for v in values]
        return None

    def _of_map(self, kind: pa.MapType, path: str) -> Finish:
        item = self.of(kind.item_type, "", True)
        keys = {key for text in self.texts if text.startswith(f"{path}.") for key in _beginnings(text[len(path) + 1 :])}
        named = {key: self.of(kind.item_type, f"{path}.{key}", True) for key in keys}

        def finish(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
            values = {}
            for key, value in pairs:
                name = _key(key)
                mend = named.get(name, item)
                values[name] = mend(value) if mend and value is not None else value
            return values

        return finish


def _beginnings(path: str) -> list[str]:
    """The names with which a path may begin, which dots end."""
    steps = path.split(".")
    return [".".join(steps[: number + 1]) for number in range(len(steps))]


def _key(value: Any) -> str:
    """A key of a map; two that differ stay two where they are no text."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _finish_struct(fields: dict[str, Finish]) -> Finish | None:
    def finish(value: dict[str, Any]) -> dict[str, Any]:
        for name, mend in fields.items():
            if value[name] is not None:
                value[name] = mend(value[name])
        return value

    return finish if fields else None


def _is_binary(kind: pa.DataType) -> bool:
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid"


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _text_or_none(value: bytes) -> str | None:
    text = _decoded(value)
    return text if isinstance(text, str) else None


def _replaced(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
