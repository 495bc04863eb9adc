"""Which documents are packed: how many tokens of each source and of each range of lengths.

Shards are shuffled by document, so the first documents of a shard are a random sample of it. Each shard gives the same
share of a range of lengths, and which documents these are depends on that shard alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.packing.settings import Lengths, PackConfig
from recipe.base.errors import UserError


def range_of(lengths: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """The range of each document, -1 where it is shorter than the first bound."""
    return np.searchsorted(np.asarray(bounds), lengths, side="right") - 1


def tokens_by_range(lengths: np.ndarray, bounds: Sequence[int]) -> list[int]:
    """Tokens of the documents of each range."""
    ranges = range_of(lengths, bounds)
    return [int(lengths[ranges == number].sum(dtype=np.int64)) for number in range(len(bounds))]


def shares_taken(source: str, config: PackConfig, there: Sequence[int]) -> list[float]:
    """The share of each range of a source that is taken.

    Args:
        there: tokens of each range.

    Raises:
        UserError: more tokens are asked for than there are.
    """
    lengths, amount = config.lengths_of(source), config.amount(source)
    if amount is None:
        return [0.0] * len(lengths)
    total = sum(lengths.values())
    weights = {least: share / total for least, share in lengths.items()}
    most = min(tokens / weight for tokens, weight in zip(there, weights.values(), strict=True))
    asked = amount.tokens if amount.tokens is not None else most * (amount.share or 1.0)
    if asked > most or not most:
        raise UserError(_too_few(source, lengths, there, int(most), amount.tokens))
    return [asked * weight / tokens for tokens, weight in zip(there, weights.values(), strict=True)]


def _too_few(source: str, lengths: Lengths, there: Sequence[int], most: int, asked: int | None) -> str:
    bounds = [*lengths, None]
    ranges = [
        f"{tokens:,} in documents of {least:,} tokens or more" + (f" and fewer than {end:,}" if end else "")
        for tokens, least, end in zip(there, bounds, bounds[1:], strict=False)
    ]
    has = f"source {source} has " + ", ".join(ranges)
    if asked is None or not most:
        return f"{has}: one of its lengths has none; change lengths, or leave {source} out of sources"
    return f"{has}: enough for {most:,} tokens, not for {asked:,}; lower sources.{source}.tokens or change lengths"


def taken(lengths: np.ndarray, bounds: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """Whether each document of a shard is taken: of each range the first ones, up to its share of the tokens."""
    chosen = np.zeros(lengths.size, bool)
    ranges = range_of(lengths, bounds)
    for number, share in enumerate(shares):
        of_range = np.flatnonzero(ranges == number)
        sizes = lengths[of_range].astype(np.int64)
        middles = np.cumsum(sizes) - sizes / 2  # the document that the share ends in goes to the nearer side
        chosen[of_range] = middles <= share * sizes.sum()
    return chosen


def packing_tasks(
    shards: Sequence[Mapping[str, Any]],
    counted: Sequence[Mapping[str, Any]],
    shares: Mapping[str, list[float]],
    config: PackConfig,
) -> list[dict[str, Any]]:
    """The shards that are packed together, so that one task holds about `max_shard_tokens` at most.

    Args:
        shards: the training shards, as their manifest lists them.
        counted: of each, its tokens by range.
    """
    tasks: list[dict[str, Any]] = []
    filled = 0.0
    for shard, count in zip(shards, counted, strict=True):
        source = shard["source"]
        expected = sum(share * n for share, n in zip(shares[source], count["tokens"], strict=True))
        if not expected:
            continue
        if not tasks or tasks[-1]["source"] != source or filled + expected > config.max_shard_tokens:
            partition = sum(task["source"] == source for task in tasks)
            tasks.append({"source": source, "partition": partition, "shards": [], "shares": shares[source],
                          "bounds": list(config.lengths_of(source))})  # fmt: skip
            filled = 0.0
        tasks[-1]["shards"].append(dict(shard))
        filled += expected
    return tasks
