"""Documents of shards that others made, without the end-of-document token that they may end in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.core.bad_records import BadRecords
from data_prep.documents.json_lines import MAX_RECORD_BYTES
from data_prep.documents.reading import BadRecord
from data_prep.tokenization.foreign_shards import Block, ForeignShard, ShardRange
from recipe.base.errors import UserError

LONGEST_TOKENS = MAX_RECORD_BYTES  # of a document: one of tokenize_corpus.py has no more, of a byte each


class PieceDocuments:
    """The documents of a piece that have tokens, without the end, and counts of how they ended."""

    def __init__(self, shard: ForeignShard, facts: dict[str, Any], bad: BadRecords):
        self.bad = bad
        self._shard, self._eod, self._vocab_size = shard, facts["eod_id"], facts["vocab_size"]
        self.counts = {"ended": 0, "appended": 0, "ends_in_text": 0}
        self._last: Counter[int] = Counter()

    def read(self, piece: ShardRange) -> Iterator[np.ndarray]:
        """Tokens of each document, uint32.

        Raises:
            UserError: an id that the tokenizer does not have.
        """
        for block in self._shard.blocks(piece, LONGEST_TOKENS):
            if block.tokens is None:
                reason = f"longer than {LONGEST_TOKENS:,} tokens"
                self.bad(BadRecord(self._shard.bin, block.first + 1, reason, "", piece.start))
                continue
            self._check(block)
            ids, offsets = block.tokens.astype(np.uint32), block.offsets
            starts, ends = offsets[:-1], offsets[1:]
            full = ends > starts
            last = ids[ends[full] - 1]
            ended = np.zeros(len(ends), bool)
            ended[full] = last == self._eod
            self.counts["ends_in_text"] += int((ids == self._eod).sum() - ended.sum())
            ends = ends - ended
            has_text = ends > starts
            self.counts["ended"] += int((has_text & ended).sum())
            self.counts["appended"] += int((has_text & ~ended).sum())
            self._count_last(last[last != self._eod])
            for start, end in zip(starts[has_text].tolist(), ends[has_text].tolist(), strict=True):
                yield ids[start:end]

    def last(self, source: str) -> dict[str, dict[str, int]]:
        """The tokens that most of the documents without an end have last, with how many do."""
        return {source: {str(token): count for token, count in self._last.most_common(8)}}

    def _count_last(self, last: np.ndarray) -> None:
        self._last.update(dict(zip(*(values.tolist() for values in np.unique(last, return_counts=True)), strict=True)))

    def _check(self, block: Block) -> None:
        tokens = block.tokens
        assert tokens is not None
        if tokens.size == 0 or (tokens.min() >= 0 and tokens.max() < self._vocab_size):
            return
        at = int(np.argmax((tokens < 0) | (tokens >= self._vocab_size)))
        document = block.first + int(np.searchsorted(block.offsets, at, side="right")) - 1
        raise UserError(
            f"document {document:,} of {self._shard.bin} (the first is 0) has the token id {tokens[at]}, and the ids of the "
            f"--tokenizer end at {self._vocab_size - 1:,}; give the tokenizer that the shard was made with"
        )
