"""Packed token shards: Megatron-LM's IndexedDataset, `.bin` + `.idx`, MMIDIDX version 1.

`.bin` holds the tokens of all documents one after another. `.idx` holds a header (magic, version, dtype
code, number of sequences, number of document boundaries), then int32 length and int64 byte offset of
each sequence, then the document boundaries as int64. Each of our documents is one sequence.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recipe.base.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES: dict[int, np.dtype] = {
    4: np.dtype("<i4"),
    8: np.dtype("<u2"),
}  # of Megatron's DType, the two that hold token ids
_HEADER = struct.Struct("<9sQBQQ")


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron-LM chooses for a vocabulary of this size."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


class ShardWriter:
    """Write documents into `prefix.bin` and `prefix.idx`; both appear under their names only when complete."""

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self._code = next(code for code, known in DTYPE_CODES.items() if known == self.dtype)
        self._lengths: list[int] = []
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(_partial(self.prefix, ".bin"), "wb")

    def add_document(self, tokens: np.ndarray | list[int]) -> None:
        array = np.asarray(tokens, dtype=self.dtype)
        self._bin.write(array.tobytes())
        self._lengths.append(array.size)

    @property
    def num_tokens(self) -> int:
        return sum(self._lengths)

    def close(self) -> None:
        """Write the index, flush both files to disk and give them their names, the index last."""
        _sync_close(self._bin)
        lengths = np.asarray(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        pointers = np.concatenate((np.zeros(1, "<i8"), ends))[: len(lengths)]
        with open(_partial(self.prefix, ".idx"), "wb") as index:
            index.write(_HEADER.pack(MAGIC, VERSION, self._code, len(lengths), len(lengths) + 1))
            for array in (lengths, pointers, np.arange(len(lengths) + 1, dtype="<i8")):
                index.write(array.tobytes())
            _sync_close(index)
        for suffix in (".bin", ".idx"):
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
