"""MinHash signatures over word or character n-grams, and the pairs that locality-sensitive hashing proposes.

Words in scripts that separate them, single characters in Han script, so that no segmenter is needed and
mixed text is one sequence. Signatures of length bands * rows; two documents are candidates when all rows of
one band agree, which for 14 * 8 happens with probability 1/2 at Jaccard 0.72
(Leskovec et al., Mining of Massive Datasets, 3.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import xxhash

TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_CHUNK = 4096  # shingles hashed at a time: 4096 * 112 * 8 bytes = 3.7 MB


class MinHash:
    """Signatures by multiply-shift hash functions drawn from a seed.

    Equal parameters give equal signatures on any machine and with any version of numpy.
    """

    def __init__(self, ngram: int, num_hashes: int, seed: int):
        self.ngram = ngram
        drawn = [xxhash.xxh3_64_intdigest(f"{place}".encode(), seed=seed) for place in range(2 * num_hashes)]
        self._multipliers = np.array(drawn[:num_hashes], np.uint64) | np.uint64(1)
        self._offsets = np.array(drawn[num_hashes:], np.uint64)

    def shingles(self, text: str) -> np.ndarray:
        """Unique uint64 hashes of the n-grams; of the whole token sequence where it is shorter than n."""
        tokens = TOKEN.findall(text.lower())
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(t.encode()) for t in tokens), np.uint64, len(tokens))
        size = min(self.ngram, max(1, hashes.size))
        windows = hashes.size - size + 1
        mixed = np.zeros(max(0, windows), np.uint64)
        for place in range(size):
            mixed = (mixed ^ hashes[place : place + windows]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        return np.unique(mixed)

    def signature(self, text: str) -> np.ndarray:
        """uint32 [num_hashes]: the minimum of each hash function over the text's shingles."""
        shingles = self.shingles(text)
        smallest = np.full(self._multipliers.size, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, shingles.size, _CHUNK):
            hashed = shingles[start : start + _CHUNK, None] * self._multipliers + self._offsets
            np.minimum(smallest, hashed.min(axis=0), out=smallest)
        return (smallest >> np.uint64(32)).astype(np.uint32)


def candidate_pairs(signatures_NH: np.ndarray, bands: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (i, j), i < j, band by band: neighbours and first-with-each within every shared bucket."""
    for band in np.array_split(signatures_NH, bands, axis=1):
        keys = np.ascontiguousarray(band).view(f"V{band.shape[1] * band.itemsize}").ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        same = bucket[order[1:]] == bucket[order[:-1]]
        yield order[:-1][same], order[1:][same]
        starts = np.flatnonzero(np.concatenate(([True], ~same)))
        first = order[np.repeat(starts, np.diff(np.append(starts, order.size)))]
        other = first != order
        yield first[other], order[other]


def connected_components(size: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Smallest index of each document's component, int64 [size], by union-find with path halving."""
    parent = list(range(size))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in pairs:
        for i, j in zip(left.tolist(), right.tolist(), strict=True):
            i, j = find(i), find(j)
            parent[max(i, j)] = min(i, j)
    return np.array([find(node) for node in range(size)], dtype=np.int64)
