"""Rows of parquet as JSON can hold them.

  timestamp, date, time   ISO 8601 text, with Z where the column has a time zone
  decimal                 text
  duration                text, its number of the column's unit
  float                   NaN and infinity become null
  binary                  base64, but text in the columns of a document's own fields
  map                     an object, its keys as text
  uuid                    text; another extension type is what it is stored as

Text that is not UTF-8 stays bytes in a document's own fields, where it makes the record a bad one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

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
        text_columns: those whose binary values are text.

    Raises:
        UserError: two columns have one name.
    """

    def __init__(self, path: Path, schema: pa.Schema, text_columns: Collection[str]):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise UserError(f"{path} has several columns of the name {twice[0]}; rename or drop one of them")
        self._path, self._schema = path, schema
        finishes = {field.name: _finish(field.type, field.name in text_columns) for field in schema}
        self._finish = {name: finish for name, finish in finishes.items() if finish is not None}
        self._cast = [_is_cast(field.type) for field in schema]
        self._text_columns = text_columns

    def rows(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        if any(self._cast):
            columns = [self._converted(number, column) for number, column in enumerate(batch.columns)]
            batch = pa.RecordBatch.from_arrays(columns, names=self._schema.names)
        try:
            rows = batch.to_pylist()
        except _UNREADABLE:  # such as text that is not UTF-8, which parquet does not promise
            rows = self._repaired(batch)
        for name, finish in self._finish.items():
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

    def _repaired(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        columns = []
        for number, column in enumerate(batch.columns):
            try:
                columns.append(_texts(column, self._schema.names[number] in self._text_columns))
            except _UNREADABLE as error:
                raise self._unreadable(number, error) from None
        return [dict(zip(self._schema.names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _unreadable(self, number: int, error: Exception) -> UserError:
        field = self._schema.field(number)
        return UserError(
            f"{self._path}: column {field.name} of type {field.type} cannot be read ({error}); drop it from the file, or "
            "write it as text"
        )


def _texts(column: pa.Array, is_text: bool) -> list[Any]:
    """A column's values, of which some are text that is not UTF-8."""
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        return column.to_pylist()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if types.is_large_string(column.type) else pa.binary()
        finish = _decoded if is_text else _replaced
        return [None if value is None else finish(value) for value in column.cast(binary).to_pylist()]


def _cast(column: pa.Array) -> pa.Array:
    """The column with types whose Python values JSON can hold, or `_finish` can mend."""
    if types.is_floating(column.type):
        column = column.cast(pa.float32()) if types.is_float16(column.type) else column
        return pc.if_else(pc.is_finite(column), column, None)
    for target in (_utc(column.type), _plain(_utc(column.type))):
        column = column.cast(target)
    return column


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
    if types.is_large_list(kind):
        return pa.large_list(change(kind.value_type))
    if types.is_list(kind):
        return pa.list_(change(kind.value_type))
    return kind


def _finish(kind: pa.DataType, is_text: bool, nested: bool = False) -> Finish | None:
    """What mends the Python values of a cast column that had this type; None where nothing is to be mended."""
    if types.is_dictionary(kind):
        return _finish(kind.value_type, is_text, nested)
    if _is_uuid(kind):
        return str
    if isinstance(kind, pa.BaseExtensionType):
        return _finish(kind.storage_type, is_text, nested)
    if types.is_timestamp(kind):
        return lambda text: text if text.startswith("<") else text.replace(" ", "T", 1)  # <value out of range: ...>
    if _is_binary(kind):
        return (_text_or_none if nested else _decoded) if is_text else _base64
    if types.is_struct(kind):
        fields = {field.name: _finish(field.type, is_text, True) for field in kind}
        return _finish_struct({name: finish for name, finish in fields.items() if finish is not None})
    if types.is_map(kind):
        return _finish_map(_finish(kind.key_type, True, True), _finish(kind.item_type, is_text, True))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _finish(kind.value_type, is_text, True)
        return None if item is None else lambda values: [None if v is None else item(v) for v in values]
    return None


def _finish_struct(fields: dict[str, Finish]) -> Finish | None:
    def finish(value: dict[str, Any]) -> dict[str, Any]:
        for name, mend in fields.items():
            if value[name] is not None:
                value[name] = mend(value[name])
        return value

    return finish if fields else None


def _finish_map(key: Finish | None, item: Finish | None) -> Finish:
    def finish(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        return {str(key(k) if key else k): item(v) if item and v is not None else v for k, v in pairs}

    return finish


def _is_binary(kind: pa.DataType) -> bool:
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


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
