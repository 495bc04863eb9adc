"""Which source each sequence of a phase comes from: cycles of `CYCLE` places, dealt by the mixture and shuffled.

Within a cycle each source has a fixed number of places, shuffled by the seed, the phase and the cycle's number. The
numbers change where a stretch of the mixture begins. No data is looked at, so that a plan can count what it will read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from recipe.data.mixture import CYCLE, Stretch
from recipe.data.permutation import Permutation


def cycle_places(weights: Mapping[str, float]) -> dict[str, int]:
    """How many of the `CYCLE` places each source gets: largest remainders, at least one where the weight is positive."""
    total = sum(weights.values())
    exact = {name: CYCLE * weight / total for name, weight in weights.items()}
    places = {name: max(int(share), 1 if share > 0 else 0) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (places[name] - exact[name], name))
    for step in range(abs(CYCLE - sum(places.values()))):
        if sum(places.values()) < CYCLE:
            places[by_remainder[step % len(by_remainder)]] += 1
        else:  # more sources than remainders: the largest gives
            places[max(places, key=lambda name: (places[name], name))] -= 1
    return places


class Cycles:
    """The sources of a phase's sequences, in order.

    Args:
        stretches: from which cycle on each source has which share; each names the same sources.
        seed: of the run.
        phase: its number; each phase has patterns of its own.
    """

    def __init__(self, stretches: Sequence[Stretch], seed: int, phase: int = 0):
        assert stretches[0].first_cycle == 0
        self.names = sorted(stretches[0].weights)
        assert all(sorted(stretch.weights) == self.names for stretch in stretches)
        self.stretches = [(stretch.first_cycle, cycle_places(stretch.weights)) for stretch in stretches]
        self._key = f"{seed}:phase:{phase}:cycle" if phase else f"{seed}:cycle"
        self._pattern = lru_cache(maxsize=2)(self._pattern_of_cycle)

    @property
    def read_names(self) -> set[str]:
        """The sources with a place in some cycle."""
        return {name for _, places in self.stretches for name, count in places.items() if count}

    def locate(self, index: int) -> tuple[int, int]:
        """Of the phase's sequence `index`: the source, as its place in `names`, and how many of it come before."""
        cycle, place = divmod(index, CYCLE)
        pattern, numbers = self._pattern(cycle)
        return int(pattern[place]), int(numbers[place])

    def count(self, sequences: int) -> dict[str, int]:
        """How many of the phase's first `sequences` come from each source."""
        cycle, rest = divmod(sequences, CYCLE)
        _, counts = self._places(cycle)
        if rest:
            pattern, _ = self._pattern(cycle)
            part = np.bincount(pattern[:rest], minlength=len(self.names))
            counts = {name: counts[name] + int(more) for name, more in zip(self.names, part, strict=True)}
        return counts

    def _places(self, cycle: int) -> tuple[dict[str, int], dict[str, int]]:
        """Places of each source in a cycle, and how many of its sequences come before that cycle."""
        before = dict.fromkeys(self.names, 0)
        for (first, places), following in zip(self.stretches, [*self.stretches[1:], None], strict=True):
            last = cycle if following is None else min(cycle, following[0])
            for name in self.names:
                before[name] += (last - first) * places[name]
            if following is None or cycle < following[0]:
                return places, before
        raise AssertionError("the last stretch has no end")

    def _pattern_of_cycle(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Source number of each place in a cycle, and which sequence of that source stands there."""
        places, before = self._places(cycle)
        ordered = np.repeat(np.arange(len(self.names)), [places[name] for name in self.names])
        pattern = ordered[Permutation(CYCLE, f"{self._key}:{cycle}").table()]
        numbers = np.empty(CYCLE, dtype=np.int64)
        for number, name in enumerate(self.names):
            where = np.flatnonzero(pattern == number)
            numbers[where] = before[name] + np.arange(where.size)
        return pattern, numbers
