"""Which part of a source is read in which sequence length, where the phases of a run have several.

The documents of a source are shuffled, so that any range of its tokens is a random sample. Each length reads a range of
its own, and no token is read in two lengths. The first length has the beginning of the source; the others have what they
are planned to read, from the end on. So the first may be prolonged without moving a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Region = tuple[int, int]  # tokens [first, end) of a source, its shards one after the other


@dataclass(frozen=True)
class Demand:
    """What all phases of one sequence length read of a source.

    Args:
        planned: tokens.
        spare: tokens more that they may come to read, or lose where a range ends within a shard.
        seq_length: of their sequences.
    """

    planned: int
    spare: int
    seq_length: int


def split_source(size: int, demands: Sequence[Demand]) -> list[Region]:
    """The range of each demand; the first has what the others leave.

    Demands beyond the source, which repeat it, have ranges in their proportion, so that all repeat alike. A range holds a
    sequence as long as there is something left for it.
    """
    regions, end = [], size
    for demand, tokens in zip(demands[1:], _sizes(size, demands)[1:], strict=True):
        first = max(0, end - max(tokens, demand.seq_length + 1))
        regions.append((first, end))
        end = first
    return [(0, end), *regions]


def _sizes(size: int, demands: Sequence[Demand]) -> list[int]:
    planned, spare = (sum(getattr(demand, part) for demand in demands) for part in ("planned", "spare"))
    left = size - planned
    if left < 0:
        return [size * demand.planned // planned for demand in demands]
    return [demand.planned + min(demand.spare, demand.spare * left // spare) for demand in demands]
