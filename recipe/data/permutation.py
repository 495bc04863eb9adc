"""A pseudorandom permutation of many places without a table of them: sequences of a source, places of a cycle."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np

Index = TypeVar("Index", int, np.ndarray)  # of one place, or of many, uint64


class Permutation:
    """A permutation of range(size) by a 4-round Feistel network with cycle walking.

    Integer arithmetic of our own, so that a run's order survives any upgrade of numpy or Python.
    """

    def __init__(self, size: int, key: str):
        self.size = size
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_bits, self._mask = half_bits, (1 << half_bits) - 1
        digest = hashlib.sha256(key.encode()).digest()
        self._round_keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(4)]

    def __call__(self, index: int) -> int:
        assert 0 <= index < self.size
        while True:  # at most 4 expected tries: the domain is less than 4 * size
            index = self._encrypt(index)
            if index < self.size:
                return index

    def table(self) -> np.ndarray:
        """Where each place goes [size], for a permutation small enough."""
        indices = self._encrypt(np.arange(self.size, dtype=np.uint64))
        while (outside := indices >= self.size).any():
            indices[outside] = self._encrypt(indices[outside])
        return indices.astype(np.int64)

    def _encrypt(self, index: Index) -> Index:
        left, right = index >> self._half_bits, index & self._mask
        for key in self._round_keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
            mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 32)) & self._mask)
        return (left << self._half_bits) | right
