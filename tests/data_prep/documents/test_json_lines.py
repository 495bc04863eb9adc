"""Lines of JSON: what Python writes is read, what nobody can read is told, and a file of another layout is refused."""

from __future__ import annotations

import gzip
import subprocess

import orjson
import pytest

from data_prep.documents.json_lines import check_lines, layout
from data_prep.documents.reading import BadRecord, Part, parse, parts_of, read_documents, records, write_part
from recipe.base.errors import UserError


def line(side: str) -> bytes:
    return b'{"id": "x", "text": "t", "side": %s}' % side.encode()


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("NaN", None),
        ("[Infinity, -Infinity, 1]", [None, None, 1]),
        ("1e999", None),
        ('{"a": NaN, "b": "NaN"}', {"a": None, "b": "NaN"}),
        ("123456789012345678901234567890", 123456789012345678901234567890.0),
        ("[NaN, 123456789012345678901234567890, 18446744073709551615]", [None, 1.2345678901234568e29, 2**64 - 1]),
        ("[1" + "0" * 5000 + "]", [None]),
        ("1, \"side\": 2", 2),
    ],
)  # fmt: skip
def test_what_other_programs_write_is_read_and_can_be_written(tmp_path, side, expected):
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(side) + b"\n")
    (document,) = read_documents(path, pytest.fail)
    assert document == {"id": "x", "text": "t", "side": expected}
    assert orjson.loads(orjson.dumps(document)) == document
    # a stage that copies lines as they are hands on what the next one reads
    write_part(tmp_path / "out", 0, records(Part(path)))
    assert list(read_documents(tmp_path / "out" / "00000.jsonl.zst", pytest.fail)) == [document]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (line('"\\ud800"'), "not JSON"),
        (line('[NaN, "\\ud800"]'), "not JSON"),
        (line("[" * 300 + "]" * 300), "nested too deeply"),
        (line('{"a":' * 300 + "1" + "}" * 300), "nested too deeply"),
        (line("[" * 5000 + "]" * 5000), "not JSON"),
        (line("[NaN," * 5000 + "1" + "]" * 5000), "not JSON"),
        (line("NaN")[:-1], "not JSON"),
        (line('"\x00"'), "not JSON"),
    ],
)
def test_a_line_that_could_not_be_written_again_is_set_aside(tmp_path, broken, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(line("1") + b"\n" + broken + b"\n" + line("2") + b"\n")
    bad: list[BadRecord] = []
    assert [d["side"] for d in read_documents(path, bad.append)] == [1, 2]
    assert [b.record for b in bad] == [2]
    assert bad[0].reason.startswith(reason)
    if reason == "not JSON":
        with pytest.raises(ValueError, match=reason):
            parse(broken)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_byte_order_marks_go_and_the_numbers_of_records_stay(tmp_path, name):
    lines = [b"\xef\xbb\xbf" + line("0") + b"\r\n", line("1") + b"\r\n", b"\xef\xbb\xbf\n", b" \r\n"]
    lines += [b"\xef\xbb\xbf" + line("2") + b"\n", line("3")]
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(b"".join(lines[:4])) + pack(b"".join(lines[4:])))
    for part_bytes in (1, 60, 10_000):
        read = [d["side"] for part in parts_of(tmp_path / name, part_bytes) for d in read_documents(part, pytest.fail)]
        assert read == [0, 1, 2, 3]
    raw = list(records(Part(tmp_path / name)))
    assert [parse(r)["side"] for r in raw] == [0, 1, 2, 3]
    assert all(orjson.loads(r) for r in raw)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"id": "a"}\n{"id": "b"}\n', "lines"),
        (b'{"id": "a"}', "lines"),
        (b'{"id": "a", "text": "ha\n{"id": "b"}\n', "lines"),  # a broken first record is one bad record
        (b'["a"]\n{"id": "b"}\n', "lines"),
        (b'{"text": "' + b"long " * 100_000 + b'"}\n', "lines"),
        (b"\xef\xbb\xbf\n \n", "empty"),
        (b"", "empty"),
        (b'[{"id": "a"}, {"id": "b"}]', "array"),
        (b'\xef\xbb\xbf[\r\n  {\r\n    "id": "a"', "array"),
        (b"[\n{", "array"),
        (b'{\n  "id": "a",\n', "object"),
        (b'{"data": [\n{"id": "a"},\n', "object"),
        (b'{"version": 1,\n', "object"),
        ('{"id": "a"}\n'.encode("utf-16"), "utf-16"),
        ('{"id": "a"}\n'.encode("utf-16-be"), "utf-16"),
        ('{"id": "a"}\n'.encode("utf-32"), "utf-32"),
        ('{"id": "a"}\n'.encode("utf-32-le"), "utf-32"),
        ('\ufeff{"id": "a"}\n'.encode("utf-32-be"), "utf-32"),
        (b'{"id": "a"},\n{"id": "b"},\n', "commas"),
        (b'{"id": "a"}, \r\n{"id": "b"}\r\n', "commas"),
        (b'{"id": "a"}\r{"id": "b"}\r', "returns"),
        (b'{"id": "a"}\r\n{"id": "b"}\r\n', "lines"),
    ],
)
def test_the_layout_of_a_file_by_its_beginning(tmp_path, content, expected):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert layout(path) == expected
    if expected in ("lines", "empty"):
        assert parts_of(path) == [Part(path)]
    else:
        with pytest.raises(UserError, match=r"x.jsonl.gz is|ends .*not one JSON object a line; convert it: gzip -dc"):
            parts_of(path)


@pytest.mark.parametrize("name", ["a b.jsonl", "a b.jsonl.gz"])
def test_a_proposed_command_does_what_it_says(tmp_path, name):
    path = tmp_path / name
    content = b'{"id": "a"},\n{"id": "b"}, \r\n{"id": "c"}\n'
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match="ends its lines with a comma") as caught:
        check_lines(path)
    command = str(caught.value).split("convert it: ")[1].removesuffix(" > NAME.jsonl")
    assert (
        subprocess.run(command, shell=True, capture_output=True, check=True).stdout.split()
        == content.replace(b"},", b"}").split()
    )
