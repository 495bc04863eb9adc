"""Document files: every format round-trips, and every defect is located."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.documents import reading as documents
from data_prep.documents.reading import (
    BadRecord,
    Part,
    document_files,
    numbered_documents,
    parts_of,
    read_documents,
    records,
    write_documents,
    write_part,
)
from recipe.base.errors import UserError

DOCUMENTS = [
    {"id": "a", "text": "one\ntwo", "lang": "en", "license": "CC0"},
    {"id": "b", "text": "文本 🙂", "lang": "zh", "license": "MIT"},
]
FORMATS = ["x.jsonl", "x.json.gz", "x.jsonl.zst", "x.parquet", "x.ndjson.bz2", "x.jsonl.xz"]


def refuse(bad: BadRecord) -> None:
    raise AssertionError(bad)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read(tmp_path, name):
    assert write_documents(tmp_path / name, iter(DOCUMENTS)).documents == 2
    assert list(read_documents(tmp_path / name, refuse)) == DOCUMENTS
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_equal_documents_give_equal_bytes(tmp_path, name):
    for folder in ("one", "two"):
        write_documents(tmp_path / folder / name, DOCUMENTS)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("name", FORMATS[1:])
def test_a_truncated_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    write_documents(path, [{"id": str(i), "text": str(i) * i} for i in range(1, 2000)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged or truncated") as caught:
        list(read_documents(path, refuse))
    assert name in str(caught.value)


def test_concatenated_zstd_frames_are_one_file(tmp_path):
    write_documents(tmp_path / "a.jsonl.zst", DOCUMENTS[:1])
    write_documents(tmp_path / "b.jsonl.zst", DOCUMENTS[1:])
    both = tmp_path / "c.jsonl.zst"
    both.write_bytes((tmp_path / "a.jsonl.zst").read_bytes() + (tmp_path / "b.jsonl.zst").read_bytes())
    assert list(read_documents(both, refuse)) == DOCUMENTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "text": "half', "not JSON"),
        (b'["x"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"text": "t"}', "missing field 'id'"),
        (b'{"id": "x"}', "missing field 'text'"),
        (b'{"id": 3.5, "text": "t"}', "field 'id' is float"),
        (b'{"id": "x", "text": "  "}', "field 'text' is empty"),
        (b'{"id": "x", "text": "\xff\xfe"}', "not JSON"),
    ],
)
def test_a_bad_record_is_set_aside_with_its_place_and_reason(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n\n' + line + b'\n{"id": "b", "text": "t"}\n')
    bad: list[BadRecord] = []
    assert [d["id"] for d in read_documents(path, bad.append)] == ["a", "b"]
    (only,) = bad
    assert (only.file, only.record) == ("x.jsonl", 2)
    assert only.reason.startswith(reason)


def test_fields_may_have_other_names(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"doc": "a", "content": "t", "k": 1}).encode()))
    (document,) = read_documents(path, refuse, {"id": "doc", "text": "content"})
    assert document == {"id": "a", "text": "t", "k": 1}


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
@pytest.mark.parametrize("fields", [None, {"id": None}])
def test_ids_by_position_do_not_depend_on_how_a_file_is_cut(tmp_path, name, fields):
    path = tmp_path / name
    written = [{"text": "文本 " * (i % 9 + 1), **({"id": "same"} if fields else {})} for i in range(40)]
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(written), path, row_group_size=3)
    else:
        write_documents(path, written)
    cuts = [
        [d["id"] for part in parts_of(path, size, "a/x") for d in read_documents(part, refuse, fields, number_ids=True)]
        for size in (1, 100, 10_000)
    ]
    assert cuts[0] == cuts[1] == cuts[2]
    assert len(set(cuts[0])) == 40
    assert cuts[0][0] == "a/x/0"
    if name == "x.parquet":
        assert cuts[0][-1] == "a/x/39"


def test_a_file_packed_otherwise_gives_the_same_ids(tmp_path):
    ids = []
    for name in ("x.jsonl", "x.jsonl.zst"):
        write_documents(tmp_path / name, [{"text": "t"}, {"text": "文"}])
        ids.append([d["id"] for d in read_documents(Part(tmp_path / name, name="x"), refuse, number_ids=True)])
    assert ids[0] == ids[1] == ["x/0", "x/13"]


def test_records_and_numbered_documents_number_alike(tmp_path):
    path = tmp_path / "x.jsonl"
    good = b'{"id": "a", "text": "t", "q": NaN}'
    path.write_bytes(b"\n".join([b"\xef\xbb\xbf" + good, b"", b"broken", b" ", b"\xef\xbb\xbf", good, b"[1]", good]))
    numbers = [number for number, _ in numbered_documents(path, lambda bad: None)]
    assert numbers == [0, 2, 4]
    assert [n for n, raw in enumerate(records(Part(path))) if raw.strip() == good] == numbers


def test_files_are_found_in_a_stable_order_and_others_are_left(tmp_path):
    for name in ("b.jsonl", "sub/a.parquet", "manifest.json", "a.txt"):
        write_documents(tmp_path / "sub" / "a.parquet", DOCUMENTS) if name.endswith("parquet") else (
            tmp_path / name
        ).touch()
    assert [p.name for p in document_files(tmp_path)] == ["b.jsonl", "a.parquet"]


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "does not exist"), ("empty", "holds no"), ("a.txt", "is none of")]
)
def test_an_input_without_documents_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=message):
        document_files(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS[1:])
def test_a_file_with_flipped_bits_is_refused_or_read_as_it_was(tmp_path, name):
    path = tmp_path / name
    written = [{"id": str(i), "text": f"document {i} " * i} for i in range(1, 60)]
    write_documents(path, written)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        bad: list[BadRecord] = []
        try:
            read = list(read_documents(path, bad.append))
        except UserError:
            refused += 1
        else:  # parquet has no checksum of its own here
            assert read == written or name == "x.parquet"
    assert refused > 10


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 1000])
@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_the_parts_of_a_file_are_the_file(tmp_path, name, part_bytes):
    written = [{"id": str(i), "text": "文本 " * (i % 9 + 1)} for i in range(40)]
    path = tmp_path / name
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(written), path, row_group_size=3)
    else:
        write_documents(path, written)
    parts = parts_of(path, part_bytes)
    assert len(parts) > 1 or part_bytes == 1000
    assert [d for part in parts for d in read_documents(part, refuse)] == written


@pytest.mark.parametrize("part_bytes", [100, 999, 1000, 1001])
def test_a_line_of_many_parts_is_not_read_by_each_of_them(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(documents, "_SKIP_BYTES", 10)
    monkeypatch.setattr(documents, "MAX_RECORD_BYTES", 50)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n' + b"x" * 10_000 + b'\n{"id": "b", "text": "t"}\n')
    read, bad, ids = [], [], []

    class Counting(io.BytesIO):
        def readline(self, size=-1):
            line = super().readline(size)
            read.append(len(line))
            return line

    monkeypatch.setattr(documents, "open", lambda path, mode: Counting(path.read_bytes()), raising=False)
    for part in parts_of(path, part_bytes):
        ids += [document["id"] for document in read_documents(part, bad.append)]
    assert ids == ["a", "b"]
    assert [record.reason for record in bad] == ["longer than 50 bytes"]
    assert sum(read) < 3 * path.stat().st_size
    assert max(read) <= 51


def test_a_compressed_stream_is_one_part(tmp_path):
    write_documents(tmp_path / "x.jsonl.gz", DOCUMENTS)
    assert parts_of(tmp_path / "x.jsonl.gz", 1) == [Part(tmp_path / "x.jsonl.gz")]


def test_what_one_task_keeps_is_cut_into_files_of_bounded_size(tmp_path):
    written = [{"id": str(i), "text": "x" * 100} for i in range(20)]
    lines = [json.dumps(d).encode() for d in written[:10]]
    assert write_part(tmp_path, 7, [*lines, *written[10:]], part_bytes=500).documents == 20
    names = [path.name for path in document_files(tmp_path)]
    assert names[:2] == ["00007-001.jsonl.zst", "00007-002.jsonl.zst"]
    assert names[-1] == "00007.jsonl.zst"
    read = {d["id"]: d for name in names for d in read_documents(tmp_path / name, refuse)}
    assert [read[d["id"]] for d in written] == written


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_too_long_for_a_workers_memory_is_set_aside(tmp_path, name, monkeypatch):
    path = tmp_path / name
    write_documents(path, [{"id": "a", "text": "t"}, {"id": "long", "text": "x" * 5000}, {"id": "b", "text": "t"}])
    monkeypatch.setattr(documents, "MAX_RECORD_BYTES", 1000)
    bad: list[BadRecord] = []
    assert [d["id"] for d in read_documents(path, bad.append)] == ["a", "b"]
    assert bad[0].record == 2
    assert "longer than 1,000" in bad[0].reason
