"""Which tokens training sees, as a pure function of one integer.

`BatchOrder.sequence(i)` is the i-th training sequence of the run. It depends on the data, the mixture and
the seed, and on nothing else: not on the number of ranks, the micro-batch, or what was read before. So the
state of the loader is the number of sequences consumed, and a run resumed on other hardware reads on.

 - mixture: indices come in cycles of `CYCLE`; within a cycle each source has a fixed number of places,
   shuffled by seed and cycle. The numbers change where a phase of the mixture begins.
 - within a source: sequences are cut back to back from the shards and visited in the order of a
   pseudorandom permutation, another one each epoch, computed without a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from recipe.base.errors import UserError
from recipe.data.indexed import DamagedShard
from recipe.data.mixture import CYCLE, Phase
from recipe.data.token_folder import Source


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


class Permutation:
    """A pseudorandom permutation of range(size) without a table: a 4-round Feistel network with cycle walking.

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

    def _encrypt(self, index: int) -> int:
        left, right = index >> self._half_bits, index & self._mask
        for key in self._round_keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed ^= mixed >> 29
            mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 32)) & self._mask)
        return (left << self._half_bits) | right


class _SourceOrder:
    """The sequences of one source, `seq_length + 1` tokens each, the last token shared with the next one."""

    def __init__(self, source: Source, seq_length: int, seed: int):
        self.source, self.seq_length, self.seed = source, seq_length, seed
        per_shard = [max(0, (shard.num_tokens - 1) // seq_length) for shard in source.shards]
        self._ends = np.cumsum(per_shard)
        self.num_sequences = int(self._ends[-1])
        if self.num_sequences == 0:
            raise UserError(
                f"source '{source.name}' has {source.num_tokens} tokens, too few for one sequence of {seq_length} + 1; "
                "lower data.seq_length or add data"
            )
        self._permutation = lru_cache(maxsize=2)(self._permutation_of_epoch)

    def _permutation_of_epoch(self, epoch: int) -> Permutation:
        return Permutation(self.num_sequences, f"{self.seed}:{self.source.name}:{epoch}")

    def sequence(self, index: int) -> np.ndarray:
        epoch, place = divmod(index, self.num_sequences)
        number = self._permutation(epoch)(place)
        shard_index = int(np.searchsorted(self._ends, number, side="right"))
        first = number - (int(self._ends[shard_index - 1]) if shard_index else 0)
        start = first * self.seq_length
        return self.source.shards[shard_index].read(start, start + self.seq_length + 1)


class BatchOrder:
    """The run's sequences in order; see the module's text.

    Args:
        sources: what to mix; one whose share is 0 in every phase is not read and may be too small for a sequence.
        phases: from which cycle on each source has which share; every source must be named.
        seq_length: S, tokens predicted per sequence.
        seed: of the order.
        skip_damage: a sequence that is damaged on disk is left out instead of an error.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        phases: Sequence[Phase],
        seq_length: int,
        seed: int,
        skip_damage: bool = False,
    ):
        assert phases[0].first_cycle == 0
        assert all(set(phase.weights) == {source.name for source in sources} for phase in phases)
        self.seed, self.skip_damage, self._seq_length = seed, skip_damage, seq_length
        self.names = sorted(source.name for source in sources)
        self.phases = [(phase.first_cycle, cycle_places(phase.weights)) for phase in phases]
        read = {name for _, places in self.phases for name, count in places.items() if count}
        self._orders = {s.name: _SourceOrder(s, seq_length, seed) for s in sources if s.name in read}
        self._pattern = lru_cache(maxsize=2)(self._pattern_of_cycle)

    def _places(self, cycle: int) -> tuple[dict[str, int], dict[str, int]]:
        """Places of each source in a cycle, and how many of its sequences come before that cycle."""
        before = dict.fromkeys(self.names, 0)
        for (first, places), following in zip(self.phases, [*self.phases[1:], None], strict=True):
            last = cycle if following is None else min(cycle, following[0])
            for name in self.names:
                before[name] += (last - first) * places[name]
            if following is None or cycle < following[0]:
                return places, before
        raise AssertionError("the last phase has no end")

    def _pattern_of_cycle(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Source number of each place in a cycle, and which sequence of that source stands there."""
        places, before = self._places(cycle)
        ordered = np.repeat(np.arange(len(self.names)), [places[name] for name in self.names])
        shuffled = Permutation(CYCLE, f"{self.seed}:cycle:{cycle}")
        pattern = ordered[[shuffled(place) for place in range(CYCLE)]]
        numbers = np.empty(CYCLE, dtype=np.int64)
        for number, name in enumerate(self.names):
            where = np.flatnonzero(pattern == number)
            numbers[where] = before[name] + np.arange(where.size)
        return pattern, numbers

    def locate(self, index: int) -> tuple[str, int]:
        """Source of the run's sequence `index`, and its number within that source."""
        cycle, place = divmod(index, CYCLE)
        pattern, numbers = self._pattern(cycle)
        return self.names[pattern[place]], int(numbers[place])

    def sequence(self, index: int) -> np.ndarray:
        """Tokens [S + 1] of the run's sequence `index`."""
        name, number = self.locate(index)
        return self._orders[name].sequence(number)

    def micro_batch(
        self, consumed: int, micro_step: int, rank: int, world_size: int, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One rank's sequences in one accumulation step after `consumed` sequences of the run.

        Micro-batches are contiguous runs of the order, dealt to ranks in turn, so that the set of
        micro-batches of a step is the same however many ranks share it.

        Returns:
            tokens [size, S + 1] int64; the source of each sequence as its place in `names` [size]; and which
            are missing [size], all zeros, because they are damaged on disk.

        Raises:
            DamagedShard: one is damaged, and damage is not to be skipped.
        """
        start = consumed + (micro_step * world_size + rank) * size
        tokens = np.zeros((size, self._seq_length + 1), dtype=np.int64)
        sources, missing = np.empty(size, dtype=np.int64), np.zeros(size, dtype=bool)
        for row, index in enumerate(range(start, start + size)):
            name, number = self.locate(index)
            sources[row] = self.names.index(name)
            try:
                tokens[row] = self._orders[name].sequence(number)
            except DamagedShard:
                if not self.skip_damage:
                    raise
                missing[row] = True
        return tokens, sources, missing

    def read(self, sequences: int) -> dict[str, float]:
        """How many sequences of each source a run of this many reads (a last part of a cycle by its shares)."""
        cycle, rest = divmod(sequences, CYCLE)
        places, before = self._places(cycle)
        return {name: before[name] + rest * places[name] / CYCLE for name in self.names}

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often each source is repeated in a run of this many sequences."""
        return {
            name: count / self._orders[name].num_sequences if count else 0.0
            for name, count in self.read(sequences).items()
        }
