"""Packed shards, read and written, against Megatron-LM's own code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.data.indexed import BLOCK_BYTES, DamagedShard, Shard, ShardWriter, token_dtype

DOCUMENTS = [[1, 2, 3], [60_000], [7] * 50, []]


def write(prefix, vocab_size: int):
    writer = ShardWriter(prefix, token_dtype(vocab_size))
    for document in DOCUMENTS:
        writer.add_document(document)
    writer.close()
    return Shard(prefix)


@pytest.mark.parametrize("vocab_size", [65_499, 65_500])
def test_what_is_written_is_read(tmp_path, vocab_size):
    shard = write(tmp_path / "a", vocab_size)
    assert [d.tolist() for d in shard.documents()] == DOCUMENTS
    assert shard.num_tokens == 54
    assert shard.num_documents == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.sums"]


@pytest.mark.parametrize("vocab_size", [65_499, 131_072])
def test_megatron_reads_our_shards_and_we_read_megatrons(tmp_path, vocab_size):
    from megatron.core.datasets import indexed_dataset as megatron

    ours = write(tmp_path / "ours", vocab_size)
    theirs = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert theirs.index.dtype == ours.dtype == megatron.DType.optimal_dtype(vocab_size)

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=megatron.DType.optimal_dtype(vocab_size))
    for document in DOCUMENTS[:3]:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(tmp_path / "m.idx"))
    assert [d.tolist() for d in Shard(tmp_path / "m").documents()] == DOCUMENTS[:3]


def test_ids_beyond_16_bits_come_back_from_megatrons_reader(tmp_path):
    from megatron.core.datasets import indexed_dataset as megatron

    documents = [[0, 70_000], [65_535, 65_536, 131_071]]
    writer = ShardWriter(tmp_path / "a", token_dtype(131_072), vocab_size=131_072)
    for document in documents:
        writer.add_document(np.array(document, np.uint32))
    writer.close()
    theirs = megatron.IndexedDataset(str(tmp_path / "a"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert [d.tolist() for d in Shard(tmp_path / "a").documents()] == documents


@pytest.mark.parametrize("kind", [list, lambda ids: np.array(ids, np.uint32), lambda ids: np.array(ids, np.int64)])
@pytest.mark.parametrize(
    ("vocab_size", "limit", "id_", "most"),
    [(3_001, None, 70_000, "65,535"), (3_001, 3_001, 3_001, "3,000"), (70_000, None, 2**31, "2,147,483,647")],
)
def test_an_id_that_a_shard_cannot_hold_is_refused(tmp_path, kind, vocab_size, limit, id_, most):
    writer = ShardWriter(tmp_path / "a", token_dtype(vocab_size), limit)
    with pytest.raises(UserError, match=f"token id {id_} is not from 0 to {most}"):
        writer.add_document(kind([5, id_, 7]))


def test_a_negative_id_is_refused(tmp_path):
    with pytest.raises(UserError, match="token id -1 is not from 0"):
        ShardWriter(tmp_path / "a", token_dtype(70_000)).add_document([1, -1])


def damage(path, how):
    raw = path.read_bytes()
    path.write_bytes({"truncated": raw[:-3], "empty": b"", "foreign": b"X" * len(raw)}[how])


@pytest.mark.parametrize(
    ("suffix", "how", "message"),
    [
        (".bin", "truncated", "not the 108 of its index"),
        (".bin", "missing", "is missing"),
        (".idx", "missing", "cannot be read"),
        (".idx", "truncated", "does not have the size"),
        (".idx", "empty", "is truncated"),
        (".idx", "foreign", "is not an MMIDIDX"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, suffix, how, message):
    write(tmp_path / "a", 65_499)
    path = tmp_path / f"a{suffix}"
    path.unlink() if how == "missing" else damage(path, how)
    with pytest.raises(UserError, match=message) as caught:
        Shard(tmp_path / "a")
    assert f"a{suffix}" in str(caught.value)


def test_an_unfinished_shard_has_no_name(tmp_path):
    writer = ShardWriter(tmp_path / "a", token_dtype(10))
    writer.add_document([1, 2])
    assert not (tmp_path / "a.bin").exists()


def test_a_flipped_bit_is_found_by_whoever_reads_its_block_and_by_nobody_else(tmp_path):
    writer = ShardWriter(tmp_path / "a", token_dtype(1000))
    writer.add_document(list(range(900)) * 100)  # 180,000 bytes: three blocks
    writer.close()
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[BLOCK_BYTES + 5] ^= 4
    (tmp_path / "a.bin").write_bytes(content)
    shard, per_block = Shard(tmp_path / "a"), BLOCK_BYTES // 2
    assert shard.verifiable
    assert shard.read(0, per_block).size == per_block
    assert shard.read(2 * per_block, 90_000).size == 90_000 - 2 * per_block
    for start, stop in ((per_block - 1, per_block + 1), (per_block + 100, per_block + 101), (0, 90_000)):
        with pytest.raises(DamagedShard, match=r"a\.bin is damaged at byte 65,536"):
            shard.read(start, stop)


def test_sums_that_are_damaged_or_of_another_shard_are_refused(tmp_path):
    for name, tokens in (("a", [1, 2, 3]), ("b", [1, 2])):
        writer = ShardWriter(tmp_path / name, token_dtype(10))
        writer.add_document(tokens)
        writer.close()
    (tmp_path / "a.sums").write_bytes((tmp_path / "b.sums").read_bytes())
    with pytest.raises(UserError, match="does not belong to"):
        Shard(tmp_path / "a")
    (tmp_path / "b.sums").write_bytes((tmp_path / "b.sums").read_bytes()[:-3])
    with pytest.raises(UserError, match="is damaged; restore it"):
        Shard(tmp_path / "b")


def test_the_index_gets_its_name_when_all_that_it_points_at_is_on_disk(tmp_path, monkeypatch):
    """Who finds an index may read the shard."""
    steps = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append(Path(b).suffix), replace(a, b)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append(f"flushed {os.readlink(f'/proc/self/fd/{fd}').split('.')[1]}"), fsync(fd))
    )
    write(tmp_path / "a", 100)
    assert steps[-3:] == [".bin", ".sums", ".idx"]
    assert {"flushed bin", "flushed idx", "flushed sums"} <= set(steps[:-3])
