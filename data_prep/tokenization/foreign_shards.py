"""Token shards as Megatron-LM, Megatron-DeepSpeed and GPT-NeoX write them, read in pieces of bounded size.

The layout is the one that recipe/data/indexed.py describes, with what that module leaves out: other dtypes, and documents
of several sequences. Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py. All writers put sequences back to
back, so an index that says otherwise is damaged.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.documents.listing import every_file, is_stage
from recipe.base.errors import UserError
from recipe.data.indexed import MAGIC, VERSION

# Codes 1 to 8 are Megatron-LM's; forks of Megatron and fairseq have 9 and 10 too.
DTYPES = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}.items()}  # fmt: skip
FLOAT_CODES = (6, 7)  # float64 and float32, which Megatron-LM and GPT-NeoX number the other way round
LEGACY_MAGIC = b"TNTIDX\x00\x00"  # of the cached and lazy datasets of GPT-NeoX and of old versions of Megatron-LM
SUFFIXES = (".bin", ".idx")
PIECE_BYTES = 1 << 28  # of a .bin, for one task
BLOCK_TOKENS = 1 << 22  # read together
BLOCK_DOCUMENTS = 1 << 14  # whose places are looked up together
BLOCK_SEQUENCES = 1 << 20  # of an index that are checked together
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries


class ShardRange(NamedTuple):
    """Some documents of a shard, and their bytes in the .bin."""

    first: int
    end: int
    start: int
    stop: int


class Block(NamedTuple):
    """Whole documents, read together: tokens one behind the other, and where each document begins and the last one ends."""

    first: int
    tokens: np.ndarray | None  # None of a document that is longer than asked for
    offsets: np.ndarray


@dataclass(frozen=True)
class ForeignShard:
    """A shard whose header is what it must be; see `open_shard`."""

    prefix: str
    dtype: np.dtype
    sequences: int
    documents: int
    bin_bytes: int

    @property
    def index(self) -> str:
        return f"{self.prefix}.idx"

    @property
    def bin(self) -> str:
        return f"{self.prefix}.bin"

    def lengths(self, first: int, end: int) -> np.ndarray:
        """Tokens of sequences [first, end)."""
        return np.fromfile(self.index, "<i4", end - first, offset=_HEADER.size + 4 * first)

    def pointers(self, first: int, end: int) -> np.ndarray:
        """Where sequences [first, end) begin in the .bin, in bytes."""
        return np.fromfile(self.index, "<i8", end - first, offset=_HEADER.size + 4 * self.sequences + 8 * first)

    def boundaries(self, first: int, end: int) -> np.ndarray:
        """The first sequence of documents [first, end); document `documents` begins where the last one ends."""
        return np.fromfile(self.index, "<i8", end - first, offset=_HEADER.size + 12 * self.sequences + 8 * first)

    def offsets(self, first: int, end: int) -> np.ndarray:
        """Where documents [first, end) begin in the .bin, and where the last one ends, in bytes."""
        boundaries = self.boundaries(first, end + 1)
        if self.sequences == 0:
            return np.zeros(len(boundaries), np.int64)
        pointers = np.memmap(self.index, "<i8", "r", _HEADER.size + 4 * self.sequences, (self.sequences,))
        begins = pointers[np.minimum(boundaries, self.sequences - 1)]
        return np.where(boundaries < self.sequences, begins, self.bin_bytes)

    def check(self) -> int:
        """Refuse an index that contradicts itself or the .bin.

        Returns:
            how many sequences are empty.

        Raises:
            UserError: names the first contradiction.
        """
        self._check_boundaries()
        offset_bytes, empty = 0, 0
        for first in range(0, self.sequences, BLOCK_SEQUENCES):
            end = min(self.sequences, first + BLOCK_SEQUENCES)
            lengths = self.lengths(first, end)
            if (lengths < 0).any():
                at = int(np.argmax(lengths < 0))
                raise UserError(f"{self.index} gives sequence {first + at:,} {lengths[at]} tokens; {_FETCH}")
            ends = offset_bytes + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            expected = np.concatenate(([offset_bytes], ends[:-1]))
            if (different := self.pointers(first, end) != expected).any():
                at = int(np.argmax(different))
                raise UserError(
                    f"{self.index} has sequence {first + at:,} begin at byte {self.pointers(first, end)[at]:,}, not at "
                    f"{expected[at]:,}, where the one before it ends; {_FETCH}"
                )
            offset_bytes, empty = int(ends[-1]), empty + int((lengths == 0).sum())
        if offset_bytes != self.bin_bytes:
            raise UserError(
                f"{self.bin} has {self.bin_bytes:,} bytes, not the {offset_bytes:,} that its .idx lists; {_FETCH}"
            )
        return empty

    def check_size(self) -> None:
        """Refuse a .bin that the index's last sequence does not end with, without reading the others.

        Raises:
            UserError: the first contradiction, as `check` finds it.
        """
        last = max(0, self.sequences - 1)
        ends = self.pointers(last, self.sequences) + self.lengths(last, self.sequences) * np.int64(self.dtype.itemsize)
        if ends.sum() != self.bin_bytes:
            self.check()

    def whole(self) -> ShardRange:
        return ShardRange(0, self.documents, 0, self.bin_bytes)

    def _check_boundaries(self) -> None:
        last = 0
        for first in range(0, self.documents + 1, BLOCK_SEQUENCES):
            boundaries = self.boundaries(first, min(self.documents + 1, first + BLOCK_SEQUENCES))
            if first == 0 and boundaries[0] != 0:
                raise UserError(f"{self.index} has its first document begin at sequence {boundaries[0]:,}; {_FETCH}")
            if boundaries[0] < last or (boundaries[1:] < boundaries[:-1]).any():
                raise UserError(f"{self.index} has documents that end before they begin; {_FETCH}")
            last = int(boundaries[-1])
        if last != self.sequences:
            raise UserError(
                f"the documents of {self.index} have {last:,} of its {self.sequences:,} sequences, as after merges by old "
                "versions of Megatron; import the shards from before the merge, or write it again"
            )

    def pieces(self) -> list[ShardRange]:
        """Its documents in pieces of about `PIECE_BYTES`; empty documents at its end are in none."""
        pieces, first, start = [], 0, 0
        for block in range(0, self.documents, BLOCK_DOCUMENTS):
            offsets = self.offsets(block, min(self.documents, block + BLOCK_DOCUMENTS))
            while (at := int(np.searchsorted(offsets, start + PIECE_BYTES))) < len(offsets):
                pieces.append(ShardRange(first, block + at, start, int(offsets[at])))
                first, start = block + at, int(offsets[at])
        return (
            pieces if start == self.bin_bytes else [*pieces, ShardRange(first, self.documents, start, self.bin_bytes)]
        )

    def blocks(self, piece: ShardRange, longest: int) -> Iterator[Block]:
        """The documents of a piece; one of more than `longest` tokens comes alone and is not read."""
        for first in range(piece.first, piece.end, BLOCK_DOCUMENTS):
            offsets = self.offsets(first, min(piece.end, first + BLOCK_DOCUMENTS)) // self.dtype.itemsize
            at, last = 0, len(offsets) - 1
            while at < last:
                end = max(at + 1, int(np.searchsorted(offsets, offsets[at] + BLOCK_TOKENS, side="right")) - 1)
                size = int(offsets[end] - offsets[at])
                tokens = None if end == at + 1 and size > longest else self.tokens(int(offsets[at]), size)
                yield Block(first + at, tokens, offsets[at : end + 1] - offsets[at])
                at = end

    def tokens(self, start: int, count: int) -> np.ndarray:
        return np.fromfile(self.bin, self.dtype, count, offset=start * self.dtype.itemsize)


_FETCH = "it is damaged; fetch it again or write it again"


def open_shard(prefix: str) -> ForeignShard:
    """The shard of a path without .bin and .idx.

    Raises:
        UserError: a file is missing, or the index is of a form that has no documents of token ids.
    """
    index, size = f"{prefix}.idx", _size(f"{prefix}.idx")
    with open(index, "rb") as handle:
        header = handle.read(_HEADER.size)
    if header.startswith(LEGACY_MAGIC):
        raise UserError(
            f"{index} is of the cached and lazy datasets of old versions (TNTIDX), which lack what is needed here; write it "
            "again as mmap: --dataset-impl mmap of preprocess_data.py of Megatron or GPT-NeoX"
        )
    if len(header) < _HEADER.size:
        raise UserError(f"{index} is cut in its header; fetch it again")
    magic, version, code, sequences, boundaries = _HEADER.unpack(header)
    if magic != MAGIC:
        raise UserError(f"{index} is no index of Megatron or GPT-NeoX (MMIDIDX); give the path of one")
    if version != VERSION:
        raise UserError(f"{index} has version {version} of the format, not {VERSION}; write it again with Megatron-LM")
    if code in FLOAT_CODES:
        raise UserError(f"{index} has numbers with fractions (dtype code {code}), not token ids; give token shards")
    if code not in DTYPES:
        raise UserError(f"{index} has the unknown dtype code {code}; known are {', '.join(map(str, DTYPES))}")
    expected = _HEADER.size + 12 * sequences + 8 * boundaries
    if sequences and size == expected + sequences:  # a byte more for each sequence: its mode
        raise UserError(
            f"{index} is of a multimodal dataset, whose sequences may be images or sound; training reads text alone: write "
            "its text again without multimodal=True"
        )
    if size != expected or boundaries == 0:
        raise UserError(f"{index} has {size:,} bytes, not the {expected:,} that its header implies; {_FETCH}")
    return ForeignShard(prefix, DTYPES[code], sequences, boundaries - 1, _size(f"{prefix}.bin"))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); a shard is a .bin and a .idx of one name: restore the file"
        ) from None


def prefixes_below(path: Path) -> list[Path]:
    """The shards that a path names: all below a folder, or the one of a path with or without .bin or .idx.

    Raises:
        UserError: there is none, or a link or folder cannot be followed.
    """
    if path.is_dir():
        if is_stage(path):
            raise UserError(f"{path} is the output of a data job already; give shards of another tool")
        files = every_file([path])
    else:
        prefix = path.with_suffix("") if path.suffix in SUFFIXES else path
        files = every_file(Path(f"{prefix}{s}") for s in SUFFIXES if os.path.lexists(f"{prefix}{s}"))
    prefixes = sorted({file.with_suffix("") for file in files if file.suffix in SUFFIXES})
    if not prefixes:
        raise UserError(
            f"{path} names no shard, which is a .bin file and a .idx file; give its path, with or without .idx, or a folder of shards"
        )
    return prefixes
