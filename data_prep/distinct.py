"""How many different ids documents have, in bounded memory: the smallest hashes (Bar-Yossef et al., RANDOM 2002).

Exact below `SIZE` ids; beyond it the size of the smallest `SIZE` hashes tells how dense all of them lie, to about
1/sqrt(SIZE), 2%. Sketches of parts merge into that of the whole.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
import xxhash

SIZE = 2048


class DistinctIds:
    def __init__(self) -> None:
        self._smallest: set[int] = set()
        self._limit = 1 << 64  # hashes from here on are not among the smallest

    def add(self, identity: str) -> None:
        self._add(xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass")))

    def _add(self, value: int) -> None:
        if value < self._limit:
            self._smallest.add(value)
            if len(self._smallest) >= 4 * SIZE:
                self._shrink()

    def _shrink(self) -> None:
        self._smallest = set(sorted(self._smallest)[:SIZE])
        self._limit = max(self._smallest)

    def count(self) -> int:
        if len(self._smallest) < SIZE:
            return len(self._smallest)
        self._shrink()
        return round((SIZE - 1) * 2.0**64 / self._limit)

    def dump(self) -> str:
        """The sketch as text, for the result of a task."""
        if len(self._smallest) > SIZE:
            self._shrink()
        return base64.b64encode(np.array(sorted(self._smallest), "<u8").tobytes()).decode()

    @classmethod
    def merged(cls, dumps: Iterable[str]) -> DistinctIds:
        total = cls()
        for dump in dumps:
            for value in np.frombuffer(base64.b64decode(dump), "<u8").tolist():
                total._add(value)
        return total
