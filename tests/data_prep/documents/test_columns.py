"""Rows of parquet hold what JSON can hold, whatever types the columns have."""

from __future__ import annotations

import uuid
from datetime import date, time, timedelta
from decimal import Decimal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.documents.reading import BadRecord, Part, read_documents, records, write_documents, write_part
from recipe.base.errors import UserError

IDENTITY = uuid.UUID(int=7)
NANOSECONDS = pa.array([1, None], pa.timestamp("ns"))


def written(path, **columns) -> Part:
    two = {"id": pa.array(["a", "b"]), "text": pa.array(["t", "t"])}
    pq.write_table(pa.table({**two, **columns}), path)
    return Part(path)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (NANOSECONDS, "1970-01-01T00:00:00.000000001"),
        (pa.array([0, None], pa.timestamp("ms", "Asia/Shanghai")), "1970-01-01T00:00:00.000Z"),
        (pa.array([date(2024, 5, 1), None]), "2024-05-01"),
        (pa.array([time(1, 2, 3), None]), "01:02:03.000000"),
        (pa.array([timedelta(seconds=5), None], pa.duration("ms")), "5000"),
        (pa.array([Decimal("1.20"), None]), "1.20"),
        (pa.array([b"\xff\x00", None]), "/wA="),
        (pa.array([b"\xff\x00", None], pa.binary(2)), "/wA="),
        (pa.array(["x", None], pa.large_string()), "x"),
        (pa.array(["x", None]).dictionary_encode(), "x"),
        (pa.array([float("nan"), None]), None),
        (pa.array([float("inf"), None], pa.float32()), None),
        (pa.array([1.5, None], pa.float16()), 1.5),
        (pa.nulls(2), None),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([IDENTITY.bytes, None], pa.binary(16))), str(IDENTITY)),
        (pa.array([{"at": 1, "raw": b"x"}, None], pa.struct([("at", pa.timestamp("ns")), ("raw", pa.binary())])),
         {"at": "1970-01-01T00:00:00.000000001", "raw": "eA=="}),
        (pa.array([[1, None], None], pa.list_(pa.timestamp("us", "UTC"))), ["1970-01-01T00:00:00.000001Z", None]),
        (pa.array([[(1, b"x")], None], pa.map_(pa.int32(), pa.binary())), {"1": "eA=="}),
        (pa.array([[("k", Decimal("1.5"))], None], pa.map_(pa.string(), pa.decimal128(3, 1))), {"k": "1.5"}),
        (pa.array([[(b"\xff", 1), (b"\xfe", 2)], None], pa.map_(pa.binary(), pa.int64())), {"\\xff": 1, "\\xfe": 2}),
        (pa.array([[b"\xff\x00", None], None], pa.list_view(pa.binary())), ["/wA=", None]),
        (pa.array([[1, None], None], pa.large_list_view(pa.timestamp("ns"))), ["1970-01-01T00:00:00.000000001", None]),
        (pa.array([[Decimal("1.2")], None], pa.list_view(pa.decimal128(3, 1))), ["1.2"]),
        (pa.array([[[5], []], None], pa.large_list_view(pa.list_view(pa.duration("ns")))), [["5"], []]),
        (pa.array([[[("k", 1)]], None], pa.list_view(pa.map_(pa.string(), pa.int64()))), [{"k": 1}]),
        (pa.array([{"v": [date(2024, 5, 1)]}, None], pa.struct([("v", pa.list_view(pa.date32()))])),
         {"v": ["2024-05-01"]}),
        (pa.array([2**61, None], pa.timestamp("us")), "<value out of range: 2305843009213693952>"),
    ],
)  # fmt: skip
def test_a_side_column_of_any_type_becomes_json(tmp_path, column, expected):
    part = written(tmp_path / "x.parquet", side=column)
    rows = list(records(part))
    assert rows == [{"id": "a", "text": "t", "side": expected}, {"id": "b", "text": "t", "side": None}]
    assert write_part(tmp_path / "out", 0, rows).documents == 2
    assert [orjson.loads(orjson.dumps(row)) for row in rows] == rows


def test_binary_is_text_in_the_fields_of_a_document(tmp_path):
    part = written(
        tmp_path / "x.parquet",
        id=pa.array([b"a", b"b", b"\xff"]),
        text=pa.array(["文本".encode(), b"\xff", b"t"]),
        source=pa.array([b"s", b"s", b"s"], pa.binary(1)),
    )
    bad: list[BadRecord] = []
    assert list(read_documents(part, bad.append)) == [{"id": "a", "text": "文本", "source": "s"}]
    assert [b.reason.split(",")[0] for b in bad] == [f"field '{n}' is bytes that are not UTF-8" for n in ("text", "id")]


def test_binary_is_text_under_other_names_and_inside_a_column(tmp_path):
    doc = pa.array([{"body": b"t", "k": 1}, {"body": b"\xff", "k": 2}])
    part = written(tmp_path / "x.parquet", key=pa.array([b"x", b"y"]), doc=doc)
    bad: list[BadRecord] = []
    documents = list(read_documents(part, bad.append, {"id": "key", "text": "doc.body"}))
    assert documents == [{"id": "x", "text": "t", "doc": {"k": 1}}]
    assert bad[0].reason.startswith("missing field 'doc.body', which fields.text names")


def test_binary_beside_a_text_inside_a_column_is_no_text(tmp_path):
    doc = pa.array([{"body": b"t", "raw": b"ok", "more": b"\xff"}] * 2)
    table = pa.array([[("body", b"t"), ("raw", b"\xff")]] * 2, pa.map_(pa.string(), pa.binary()))
    for column in (doc, table):
        part = written(tmp_path / "x.parquet", doc=column)
        rows = list(read_documents(part, lambda bad: None, {"text": "doc.body"}))
        assert [row["text"] for row in rows] == ["t", "t"]
        assert rows[0]["doc"] in ({"raw": "b2s=", "more": "/w=="}, {"raw": "/w=="})


BROKEN = pa.array([b"good", b"\xff"]).view(pa.string())
ENDS = pa.array([0, 1, 2], pa.int32())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.StructArray.from_arrays([BROKEN, pa.array([1, 2], pa.timestamp("ms")), pa.array([b"r"] * 2)], ["k", "at", "b"]),
         {"k": "\ufffd", "at": "1970-01-01T00:00:00.002", "b": "cg=="}),
        (pa.ListArray.from_arrays(ENDS, BROKEN), ["\ufffd"]),
        (pa.MapArray.from_arrays(ENDS, pa.array(["k", "k"]), BROKEN), {"k": "\ufffd"}),
        (pa.MapArray.from_arrays(ENDS, BROKEN, pa.array([1, 2])), {"\\xff": 2}),
        (pa.array([b"good", b"\xff"]).cast(pa.binary_view()).view(pa.string_view()), "\ufffd"),
    ],
)  # fmt: skip
def test_text_that_is_not_utf_8_inside_a_column_is_mended(tmp_path, column, expected):
    part = written(tmp_path / "x.parquet", side=column, other=pa.array([b"o", b"o"]))
    rows = list(records(part))
    assert [row["side"] for row in rows][1] == expected
    assert rows[1]["other"] == "bw=="
    assert write_part(tmp_path / "out", 0, rows).documents == 2


def test_a_text_inside_a_column_that_is_not_utf_8_is_a_bad_record(tmp_path):
    part = written(tmp_path / "x.parquet", doc=pa.StructArray.from_arrays([BROKEN], ["body"]))
    bad: list[BadRecord] = []
    assert [d["text"] for d in read_documents(part, bad.append, {"text": "doc.body"})] == ["good"]
    assert [record.record for record in bad] == [2]


def test_text_that_is_not_utf_8_is_a_bad_record_and_not_a_bad_file(tmp_path):
    broken = pa.array([b"good", b"\xff"]).view(pa.string())
    part = written(tmp_path / "x.parquet", text=broken, side=broken)
    bad: list[BadRecord] = []
    assert list(read_documents(part, bad.append)) == [{"id": "a", "text": "good", "side": "good"}]
    assert bad[0].reason.startswith("field 'text' is bytes that are not UTF-8")


def test_old_timestamps_of_96_bits_outside_nanoseconds(tmp_path):
    values = pa.array([-(62135596800) * 10**6, 0], pa.timestamp("us"))  # the year 1
    table = pa.table({"id": ["a", "b"], "text": ["t", "t"], "at": values})
    pq.write_table(table, tmp_path / "x.parquet", use_deprecated_int96_timestamps=True)
    assert next(records(Part(tmp_path / "x.parquet")))["at"].startswith("0001-01-01T00:00:00")


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(pa.table([["a"], ["t"], ["u"]], names=["id", "text", "text"]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="several columns of the name text"):
        list(records(Part(tmp_path / "x.parquet")))


def test_a_column_that_cannot_be_read_is_named(tmp_path):
    part = written(
        tmp_path / "x.parquet",
        side=pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["k", "k"]),
    )
    with pytest.raises(UserError, match=r"x\.parquet: column side of type struct"):
        list(records(part))


@pytest.mark.parametrize("rows", [[], [{"id": "a", "text": "t"}, {"id": "b", "text": "t", "late": 1}]])
def test_a_parquet_file_has_all_fields_of_all_rows(tmp_path, rows):
    assert write_documents(tmp_path / "x.parquet", rows).documents == len(rows)
    read = list(records(Part(tmp_path / "x.parquet")))
    assert [{k: v for k, v in row.items() if v is not None} for row in read] == rows


@pytest.mark.parametrize("values", [(1, "x"), ([1], {"k": 1}), (2**70, 1), ({}, {})])
def test_values_that_one_column_cannot_hold_are_refused_in_a_sentence(tmp_path, values):
    rows = [{"id": str(i), "text": "t", "meta": value} for i, value in enumerate(values)]
    with pytest.raises(UserError, match=r"meta.*write \.jsonl\.zst"):
        write_documents(tmp_path / "x.parquet", rows)
