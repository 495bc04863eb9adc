"""Compressed files are read whatever tool wrote them, and what is wrong with one is told."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc

import pytest
import zstandard

from data_prep.documents.compression import unpacked
from data_prep.documents.reading import parts_of, read_documents
from recipe.base.errors import UserError

LINES = [b'{"id": "%d", "text": "t"}\n' % i for i in range(50)]
FIRST, SECOND = b"".join(LINES[:20]), b"".join(LINES[20:])
SKIPPED = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"  # a skippable frame, RFC 8878


def zstd(data: bytes, window_log: int | None = None) -> bytes:
    """One frame; with `window_log` one of unknown content size, as `zstd --long` writes of a pipe."""
    if window_log is None:
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_checksum=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(data) + stream.flush()


def ids(path) -> list[str]:
    def refuse(bad):
        raise AssertionError(bad)

    (part,) = parts_of(path)
    return [document["id"] for document in read_documents(part, refuse)]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("gz", gzip.compress(FIRST) + gzip.compress(SECOND)),
        ("GZ", gzip.compress(FIRST + SECOND) + b"\0" * 512),
        ("bz2", bz2.compress(FIRST) + bz2.compress(SECOND)),
        ("xz", lzma.compress(FIRST) + lzma.compress(SECOND)),
        ("xz", lzma.compress(FIRST) + bytes(8) + lzma.compress(SECOND) + bytes(4096)),
        ("zstd", zstd(FIRST) + zstd(SECOND)),
        ("zst", SKIPPED + zstd(FIRST) + SKIPPED + zstd(b"") + zstd(SECOND) + SKIPPED),
        ("zst", zstd(FIRST, 28) + zstd(SECOND, 31)),
    ],
)
def test_streams_in_every_form_that_tools_write(tmp_path, suffix, content):
    path = tmp_path / f"x.jsonl.{suffix}"
    path.write_bytes(content)
    assert ids(path) == [str(i) for i in range(50)]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("gz", gzip.compress(FIRST)),
        ("bz2", bz2.compress(FIRST)),
        ("xz", lzma.compress(FIRST)),
        ("zst", zstd(FIRST)),
        ("zst", zstd(FIRST, 28)),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "changed", "appended", "empty"])
def test_damage_is_told_with_the_file(tmp_path, suffix, content, damage):
    path = tmp_path / f"x.jsonl.{suffix}"
    middle = len(content) // 2
    path.write_bytes({
        "cut": content[:-6],
        "changed": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "appended": content + content[:-6],
        "empty": b"",
    }[damage])  # fmt: skip
    with pytest.raises(UserError, match="is damaged or truncated") as caught:
        ids(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, zstd, gzip.compress])
@pytest.mark.parametrize("behind", ["changed", "lines", "magic"])
def test_what_is_wrong_behind_the_first_stream_is_no_end(tmp_path, pack, behind):
    suffix = {bz2.compress: "bz2", lzma.compress: "xz", zstd: "zst", gzip.compress: "gz"}[pack]
    second = pack(SECOND)
    middle = len(second) // 2
    path = tmp_path / f"x.jsonl.{suffix}"
    path.write_bytes(pack(FIRST) + {
        "changed": second[:middle] + bytes([second[middle] ^ 0xFF]) + second[middle + 1 :],
        "lines": SECOND,
        "magic": second[:3],
    }[behind])  # fmt: skip
    with pytest.raises(UserError, match="is damaged or truncated"):
        ids(path)


def test_padding_of_xz_is_of_whole_words(tmp_path):
    path = tmp_path / "x.jsonl.xz"
    for behind in (bytes(3) + lzma.compress(SECOND), bytes(3)):
        path.write_bytes(lzma.compress(FIRST) + behind)
        with pytest.raises(UserError, match=r"is damaged or truncated.*not a multiple of 4"):
            ids(path)


def test_a_stream_of_blanks_is_read_in_pieces(tmp_path):
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstd(bytes(1 << 28)))
    tracemalloc.start()
    with open(path, "rb") as raw:
        assert unpacked(path, raw).read(1) == b"\0"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 27  # of 1 << 28


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", FIRST, "is named as gzip but is not compressed"),
        ("x.jsonl.zst", gzip.compress(FIRST), "is named as zstd but holds gzip data"),
        ("x.jsonl", zstd(FIRST), "is named as plain text but holds zstd data"),
        ("x.json", bz2.compress(FIRST), "is named as plain text but holds bzip2 data"),
        ("x.ndjson.bz2", b"PK\x03\x04" + bytes(50), "is named as bzip2 but holds zip data"),
    ],
)
def test_a_content_that_the_name_does_not_tell_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ids(tmp_path / name)


def test_a_dictionary_that_is_not_in_the_file_is_asked_for(tmp_path):
    dictionary = zstandard.train_dictionary(1000, [b'{"id": "%d", "text": "words %d"}' % (i, i) for i in range(2000)])
    (tmp_path / "x y.jsonl.zst").write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(FIRST))
    with pytest.raises(UserError, match=r"needs the zstd dictionary.*-D DICTIONARY '/.*x y.jsonl.zst'"):
        ids(tmp_path / "x y.jsonl.zst")
