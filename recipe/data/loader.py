"""Which tokens training sees, as a pure function of one integer.

`BatchOrder.sequence(i)` is the i-th training sequence of a phase. It depends on the data, the plan of the mixture, the
seed and what the phases before have read, and on nothing else: not on the number of ranks or the micro-batch. So the
state of the loader is the number of sequences consumed, and a run resumed on other hardware reads on.

 - mixture: `Cycles` deals the sequences to the sources.
 - within a source: sequences are cut back to back from the shards and visited in the order of a
   pseudorandom permutation, another one each epoch, computed without a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from recipe.base.errors import UserError
from recipe.data.cycles import Cycles
from recipe.data.indexed import DamagedShard
from recipe.data.mixture import Stretch
from recipe.data.permutation import Permutation
from recipe.data.regions import Region
from recipe.data.token_folder import Source


class _SourceOrder:
    """The sequences of a region of one source, `seq_length + 1` tokens each, the last token shared with the next one.

    Args:
        region: what of the source is read.
        first: how many sequences of the region have been read before; the first here comes after them.
    """

    def __init__(self, source: Source, seq_length: int, seed: int, region: Region, first: int):
        self.source, self.seq_length, self.seed, self._first = source, seq_length, seed, first
        ends = np.cumsum([shard.num_tokens for shard in source.shards])
        starts = ends - [shard.num_tokens for shard in source.shards]
        self._starts = np.clip(region[0], starts, ends) - starts  # the region's first token in each shard
        tokens = np.clip(region[1], starts, ends) - starts - self._starts
        self._ends = np.cumsum(np.maximum(0, (tokens - 1) // seq_length))
        self.num_sequences = int(self._ends[-1])
        if self.num_sequences == 0:
            part = "" if int(tokens.sum()) == source.num_tokens else f"{int(tokens.sum())} of its "
            raise UserError(
                f"source '{source.name}' has {part}{source.num_tokens} tokens, too few for one sequence of {seq_length} + 1; "
                "lower data.seq_length or add data"
            )
        self._permutation = lru_cache(maxsize=2)(self._permutation_of_epoch)

    def _permutation_of_epoch(self, epoch: int) -> Permutation:
        return Permutation(self.num_sequences, f"{self.seed}:{self.source.name}:{epoch}")

    def sequence(self, index: int) -> np.ndarray:
        epoch, place = divmod(self._first + index, self.num_sequences)
        number = self._permutation(epoch)(place)
        shard_index = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[shard_index - 1]) if shard_index else 0
        start = int(self._starts[shard_index]) + (number - before) * self.seq_length
        return self.source.shards[shard_index].read(start, start + self.seq_length + 1)


class BatchOrder:
    """The sequences of a phase in order; see the module's text. `RunOrder.of_phase` makes those of a run.

    Args:
        sources: what to mix; one whose share is 0 in every stretch is not read and may be too small for a sequence.
        stretches: from which cycle on each source has which share; every source must be named.
        seq_length: S, tokens predicted per sequence.
        seed: of the order.
        skip_damage: a sequence that is damaged on disk is left out instead of an error.
        phase: its number.
        regions: what of each source is read; all of it where none is named.
        read_before: sequences of each source's region that the phases before have read.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stretches: Sequence[Stretch],
        seq_length: int,
        seed: int,
        skip_damage: bool = False,
        *,
        phase: int = 0,
        regions: Mapping[str, Region] | None = None,
        read_before: Mapping[str, int] | None = None,
    ):
        self.seed, self.skip_damage, self._seq_length = seed, skip_damage, seq_length
        self._cycles = Cycles(stretches, seed, phase)
        assert self.names == sorted(source.name for source in sources)
        regions, first = regions or {}, read_before or {}
        self._orders = {
            s.name: _SourceOrder(s, seq_length, seed, regions.get(s.name, (0, s.num_tokens)), first.get(s.name, 0))
            for s in sources
            if s.name in self._cycles.read_names
        }

    @property
    def names(self) -> list[str]:
        return self._cycles.names

    @property
    def stretches(self) -> list[tuple[int, dict[str, int]]]:
        """From which cycle on each source has how many of a cycle's places."""
        return self._cycles.stretches

    def locate(self, index: int) -> tuple[str, int]:
        """Source of the phase's sequence `index`, and its number among those of that source in the phase."""
        source, number = self._cycles.locate(index)
        return self.names[source], number

    def sequence(self, index: int) -> np.ndarray:
        """Tokens [S + 1] of the phase's sequence `index`."""
        name, number = self.locate(index)
        return self._orders[name].sequence(number)

    def micro_batch(
        self, consumed: int, micro_step: int, rank: int, world_size: int, size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One rank's sequences in one accumulation step after `consumed` sequences of the phase.

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
            sources[row], number = self._cycles.locate(index)
            try:
                tokens[row] = self._orders[self.names[sources[row]]].sequence(number)
            except DamagedShard:
                if not self.skip_damage:
                    raise
                missing[row] = True
        return tokens, sources, missing

    def read(self, sequences: int) -> dict[str, float]:
        """How many sequences of each source the phase's first `sequences` are."""
        return {**self._cycles.count(sequences)}

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often the phase's first `sequences` go through the region of each source."""
        return {
            name: count / self._orders[name].num_sequences if count else 0.0
            for name, count in self.read(sequences).items()
        }
