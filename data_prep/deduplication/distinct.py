"""How many different ids documents have, in bounded memory: the smallest hashes (Bar-Yossef et al., RANDOM 2002).

Exact below `size` ids; beyond it the size of the smallest `size` hashes tells how dense all of them lie, to about
1/sqrt(size), 2% by default. Sketches of parts merge into that of the whole.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
import xxhash

SIZE = 2048


class DistinctIds:
    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._smallest: set[int] = set()
        self._limit = 1 << 64  # hashes from here on are not among the smallest

    def add(self, identity: str) -> None:
        self._add(xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass")))

    def _add(self, value: int) -> None:
        if value < self._limit:
            self._smallest.add(value)
            if len(self._smallest) >= 4 * self._size:
                self._shrink()

    def _shrink(self) -> None:
        self._smallest = set(sorted(self._smallest)[: self._size])
        self._limit = max(self._smallest)

    def count(self) -> int:
        if len(self._smallest) < self._size:
            return len(self._smallest)
        self._shrink()
        return round((self._size - 1) * 2.0**64 / self._limit)

    def dump(self) -> str:
        """The sketch as text, for the result of a task."""
        if len(self._smallest) > self._size:
            self._shrink()
        return base64.b64encode(np.array(sorted(self._smallest), "<u8").tobytes()).decode()

    @classmethod
    def merged(cls, dumps: Iterable[str], size: int = SIZE) -> DistinctIds:
        total = cls(size)
        for dump in dumps:
            for value in np.frombuffer(base64.b64decode(dump), "<u8").tolist():
                total._add(value)
        return total
