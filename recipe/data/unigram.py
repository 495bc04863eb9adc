"""Unigram entropy of packed tokens: the loss of a model that knows the frequencies and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from recipe.data.token_folder import Source


def unigram_entropy(sources: Iterable[Source], weights: dict[str, float]) -> float:
    """Entropy in nats per token of the mixture's token frequencies."""
    mixed = np.zeros(0)
    for source in sources:
        counts = np.zeros(0)
        for shard in source.shards:
            counts = _add(counts, np.bincount(shard.tokens).astype(np.float64))
        mixed = _add(mixed, weights[source.name] * counts / counts.sum())
    p = mixed[mixed > 0] / mixed.sum()
    return float(-(p * np.log(p)).sum())


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = max(a.size, b.size)
    return np.pad(a, (0, size - a.size)) + np.pad(b, (0, size - b.size))
