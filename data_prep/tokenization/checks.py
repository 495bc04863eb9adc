"""Whether the token ids of shards are those of a tokenizer, which shards do not name, and what to say of them.

Text that is decoded from ids and encoded again gives the same ids by the tokenizer that made them, and hardly ever by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.tokenization.encoder import ReferenceEncoder
from data_prep.tokenization.foreign_shards import ForeignShard, ShardRange
from recipe.base.errors import UserError

COMPARED_SEQUENCES, COMPARED_TOKENS = 32, 2048  # of each piece, decoded and encoded again
CUT_TOKENS = 64  # at the end of a cut sequence, which may come back otherwise
MAJORITY = 0.5  # of the documents or sequences: no chance


@cache
def load_reference(tokenizer: Path) -> ReferenceEncoder:
    """Loaded once per process."""
    return ReferenceEncoder(tokenizer)


def check_tokens(shard: ForeignShard, piece: ShardRange, facts: dict[str, Any], tokenizer: Path) -> None:
    """Refuse a piece whose first sequences are of another tokenizer.

    Raises:
        UserError: most of them encode to other tokens.
    """
    counts = tokens_compared(shard, piece, facts, tokenizer)
    if counts["changed"] > MAJORITY * counts["compared"]:
        shard.check()  # sequences of a damaged index are cut wrong
        raise UserError(
            f"{counts['changed']:,} of the first {counts['compared']:,} sequences from byte {piece.start:,} of {shard.bin} give "
            f"other tokens when --tokenizer {tokenizer} decodes and encodes them; give the tokenizer that the shard was made "
            "with, or set check_tokenizer: false in the --config if it is this one and the ids do not stand for text"
        )


def tokens_compared(shard: ForeignShard, piece: ShardRange, facts: dict[str, Any], tokenizer: Path) -> dict[str, int]:
    """How many of the first sequences of a piece were decoded and encoded, and how many changed.

    A sequence with ids that the tokenizer does not have is left out: the document that it is in is refused by itself.
    """
    sequences = (
        ids.astype(np.uint32)
        for ids in _first_sequences(shard, piece)
        if ids.size and ids.min() >= 0 and ids.max() < facts["vocab_size"]
    )
    return compare(load_reference(tokenizer), sequences, facts["eod_id"])


def _first_sequences(shard: ForeignShard, piece: ShardRange) -> Iterator[np.ndarray]:
    """The beginning of the first sequences of a piece, which writers have encoded one by one."""
    first = int(shard.boundaries(piece.first, piece.first + 1)[0]) if piece.first else 0
    lengths = shard.lengths(first, min(shard.sequences, first + COMPARED_SEQUENCES)).tolist()
    start = piece.start // shard.dtype.itemsize
    for length in lengths:
        if length < 0:  # of a damaged index, which its own check tells
            return
        yield shard.tokens(start, min(length, COMPARED_TOKENS + CUT_TOKENS))
        start += length


def compare(reference: ReferenceEncoder, sequences: Iterable[np.ndarray], eod: int) -> dict[str, int]:
    """How many sequences were decoded, and of how many the text gives other tokens: those of another tokenizer do.

    Special tokens, which a text does not give, are left out with what comes after the first one inside.
    """
    special = {eod, *(reference.vocabulary[token] for token in reference.special_tokens)}
    counts = {"compared": 0, "changed": 0}
    for ids in sequences:
        plain = _plain(ids, np.array(sorted(special)))
        if plain.size:
            again = reference.encode([reference.decode(plain)])[0]
            size = min(plain.size, COMPARED_TOKENS) if ids.size > COMPARED_TOKENS else plain.size
            same = np.array_equal(again[:size], plain[:size]) and (ids.size > COMPARED_TOKENS or again.size == size)
            counts["compared"] += 1
            counts["changed"] += not same
    return counts


def _plain(ids: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The first tokens that are not special."""
    is_special = np.isin(ids, special)
    start = int(np.argmin(is_special)) if not is_special.all() else ids.size
    rest = is_special[start:]
    return ids[start : start + int(np.argmax(rest))] if rest.any() else ids[start:]


def notes(results: dict[str, Any], held_out: float, special: dict[int, str], tokenizer: Path) -> Iterator[str]:
    """A sentence for each thing about the tokens that a user should know and may not expect."""
    for source, count in results["documents"].items():
        documents = count["ended"] + count["appended"]
        if count["appended"]:
            how_many = "none" if not count["ended"] else f"{count['ended']:,}"
            yield (
                f"{how_many} of {documents:,} documents of {source} ended in the eos_token of the tokenizer; "
                f"{count['appended']:,} got it"
            )
        for token, ends in results["last_tokens"].get(source, {}).items():
            if ends > MAJORITY * documents and int(token) in special:
                yield (
                    f"{ends:,} documents of {source} end in {special[int(token)]!r} ({token}), which is not the eos_token of "
                    "the tokenizer and now stands before it; if it ends documents, name it as eos_token in "
                    "tokenizer_config.json and import again"
                )
        if count["ends_in_text"]:
            yield (
                f"{count['ends_in_text']:,} end-of-document tokens of {source} come from inside its documents and end them "
                "early; where the shard's documents are packed sequences, that is as it should be"
            )
        if count["changed"] > MAJORITY * count["compared"]:
            yield (
                f"{count['changed']:,} of {count['compared']:,} sequences of {source} that were decoded by {tokenizer} encode "
                "to other tokens; make sure that the shards were made with this tokenizer"
            )
    for source, counts in results["held_out_far_off"].items():
        yield (
            f"{counts['held_out']:,} of {counts['documents']:,} documents of {source} are held out, {held_out:.2%} were asked "
            "for: equal documents are held out together; many of these are equal"
        )
