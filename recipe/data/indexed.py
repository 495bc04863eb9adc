"""Packed token shards: Megatron-LM's IndexedDataset, `.bin` + `.idx`, MMIDIDX version 1.

`.bin` holds the tokens of all documents one after another. `.idx` holds a header (magic, version, dtype
code, number of sequences, number of document boundaries), then int32 length and int64 byte offset of
each sequence, then the document boundaries as int64. Each of our documents is one sequence.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.

Beside them we write `.sums`, the XXH3 of every 64 KiB block of the `.bin`, so that what a training step reads is
verified when it is read, by whom it is read, at the cost of the block around it: shards of terabytes are never read
whole for it. A shard of another writer has no sums, and is not verified.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from recipe.base.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES: dict[int, np.dtype] = {
    4: np.dtype("<i4"),
    8: np.dtype("<u2"),
}  # of Megatron's DType, the two that hold token ids
LARGEST_ID = 2**31 - 1  # of a token, in the wider dtype
SUFFIXES = (".bin", ".idx", ".sums")
BLOCK_BYTES = 1 << 16
_HEADER = struct.Struct("<9sQBQQ")
_SUMS_HEADER = struct.Struct("<8sIIQ")  # magic, version, block size, size of the .bin
_SUMS_MAGIC, _SUMS_VERSION = b"BINSUMS\x00", 1


class DamagedShard(UserError):
    """A block of a shard is not what was written."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron-LM chooses for a vocabulary of this size, the largest id and one."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


def largest_id(dtype: np.dtype) -> int:
    """The largest token id that a shard of this dtype can hold."""
    return int(np.iinfo(dtype).max)


class ShardWriter:
    """Write documents into `prefix.bin`, `.idx` and `.sums`; they appear under their names only when complete.

    Args:
        prefix: path of the shard without a suffix.
        dtype: see `token_dtype`.
        vocab_size: ids from this on are refused; default: those that the dtype cannot hold.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype, vocab_size: int | None = None):
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self._largest = min(largest_id(self.dtype), LARGEST_ID if vocab_size is None else vocab_size - 1)
        self._code = next(code for code, known in DTYPE_CODES.items() if known == self.dtype)
        self._lengths: list[int] = []
        self._sums: list[int] = []
        self._block = bytearray()  # the block being filled
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(_partial(self.prefix, ".bin"), "wb")

    def add_document(self, tokens: np.ndarray | list[int]) -> None:
        """Write one document; see `add_documents`."""
        given = np.asarray(tokens)
        self.add_documents(given, [given.size])

    def add_documents(self, tokens: np.ndarray, lengths: Sequence[int]) -> None:
        """Write documents of so many tokens, which lie one behind the other.

        Raises:
            UserError: there is an id that the shard cannot hold, which numpy would cut to its lower bits.
        """
        if tokens.size and (tokens.min() < 0 or tokens.max() > self._largest):
            worst = tokens.min() if tokens.min() < 0 else tokens.max()
            raise UserError(
                f"{self.prefix}: token id {worst} is not from 0 to {self._largest:,}, the ids of this shard; the tokenizer.json "
                "is not the one that the shard was begun for, or gives ids beyond its vocabulary"
            )
        content = tokens.astype(self.dtype).tobytes()
        self._bin.write(content)
        self._lengths.extend(lengths)
        self._block += content
        while len(self._block) >= BLOCK_BYTES:
            self._end_block()

    def _end_block(self) -> None:
        self._sums.append(xxhash.xxh3_64_intdigest(bytes(self._block[:BLOCK_BYTES])))
        del self._block[:BLOCK_BYTES]

    @property
    def num_tokens(self) -> int:
        return sum(self._lengths)

    def close(self) -> None:
        """Write index and sums, flush all to disk and give them their names, the index last."""
        _sync_close(self._bin)
        lengths = np.asarray(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        pointers = np.concatenate((np.zeros(1, "<i8"), ends))[: len(lengths)]
        with open(_partial(self.prefix, ".idx"), "wb") as index:
            index.write(_HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(lengths) + 1))
            for array in (lengths, pointers, np.arange(len(lengths) + 1, dtype="<i8")):
                index.write(array.tobytes())
            _sync_close(index)
        if self._block:
            self._end_block()
        size = int(lengths.sum(dtype="<i8")) * self.dtype.itemsize
        content = _SUMS_HEADER.pack(_SUMS_MAGIC, _SUMS_VERSION, BLOCK_BYTES, size)
        content += np.asarray(self._sums, dtype="<u8").tobytes()
        with open(_partial(self.prefix, ".sums"), "wb") as sums:
            sums.write(content + struct.pack("<Q", xxhash.xxh3_64_intdigest(content)))
            _sync_close(sums)
        for suffix in (".bin", ".sums", ".idx"):
            os.replace(_partial(self.prefix, suffix), f"{self.prefix}{suffix}")


class Shard:
    """Read a shard through a memory map.

    Raises:
        UserError: missing file, wrong magic or version, or a size that does not fit the index.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self._map_index(Path(f"{prefix}.idx"))
        bin_path = Path(f"{prefix}.bin")
        # Documents lie back to back, so the last one's end is the size: nothing else of the index is read.
        expected = int(self._pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if self.lengths.size else 0
        actual = bin_path.stat().st_size if bin_path.exists() else None
        if actual != expected:
            state = "is missing" if actual is None else f"holds {actual} bytes, not the {expected} of its index"
            raise UserError(f"{bin_path} {state}; tokenize it again")
        self.tokens = np.memmap(bin_path, dtype=self.dtype, mode="r") if expected else np.empty(0, self.dtype)
        self._raw = self.tokens.view(np.uint8)
        self._sums = self._read_sums(Path(f"{prefix}.sums"), expected)

    @property
    def verifiable(self) -> bool:
        return self._sums is not None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), after the blocks that hold them have been verified.

        Raises:
            DamagedShard: they are not what was written.
        """
        if self._sums is not None and stop > start:
            size = self.dtype.itemsize
            for block in range(start * size // BLOCK_BYTES, -(-min(stop, self.num_tokens) * size // BLOCK_BYTES)):
                content = self._raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
                if xxhash.xxh3_64_intdigest(content.tobytes()) != int(self._sums[block]):
                    raise DamagedShard(
                        f"{self.prefix}.bin is damaged at byte {block * BLOCK_BYTES:,}; restore it or tokenize it again, "
                        "or set data.on_damage skip to go on without such sequences"
                    )
        return self.tokens[start:stop]

    def _read_sums(self, path: Path, size: int) -> np.ndarray | None:
        if not path.exists():
            return None
        content = path.read_bytes()
        body, end = content[:-8], content[-8:]
        if len(content) < _SUMS_HEADER.size + 8 or xxhash.xxh3_64_intdigest(body) != int.from_bytes(end, "little"):
            raise UserError(f"{path} is damaged; restore it or tokenize again")
        magic, version, block, described = _SUMS_HEADER.unpack(body[: _SUMS_HEADER.size])
        if (magic, version, block, described) != (_SUMS_MAGIC, _SUMS_VERSION, BLOCK_BYTES, size):
            raise UserError(f"{path} does not belong to {path.with_suffix('.bin')}; tokenize again")
        return np.frombuffer(body, "<u8", offset=_SUMS_HEADER.size)

    def _map_index(self, path: Path) -> None:
        try:
            with open(path, "rb") as handle:
                header = handle.read(_HEADER.size)
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); tokenize it again") from None
        if len(header) < _HEADER.size:
            raise UserError(f"{path} is truncated; tokenize it again")
        magic, version, code, sequences, documents = _HEADER.unpack(header)
        if magic != MAGIC or version != VERSION:
            raise UserError(f"{path} is not an MMIDIDX version {VERSION} index")
        if code not in DTYPE_CODES:
            raise UserError(f"{path} has dtype code {code}; token shards are uint16 (8) or int32 (4)")
        if size != _HEADER.size + 12 * sequences + 8 * documents:
            raise UserError(f"{path} does not have the size its header implies; tokenize it again")
        self.dtype = DTYPE_CODES[code]
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        self.lengths = np.frombuffer(raw, "<i4", sequences, _HEADER.size)
        self._pointers = np.frombuffer(raw, "<i8", sequences, _HEADER.size + 4 * sequences)

    @property
    def num_tokens(self) -> int:
        return self.tokens.size

    @property
    def num_documents(self) -> int:
        return self.lengths.size

    def documents(self) -> Iterator[np.ndarray]:
        for pointer, length in zip(self._pointers, self.lengths, strict=True):
            start = int(pointer) // self.dtype.itemsize
            yield self.tokens[start : start + int(length)]


def _partial(prefix: Path, suffix: str) -> str:
    return f"{prefix}{suffix}.partial"


def _sync_close(handle) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()
