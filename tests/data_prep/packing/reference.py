"""The order of documents that data_prep/native/packing.hpp computes, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence


def packed_order(lengths: Sequence[int], seq_length: int) -> list[int]:
    """The numbers of the documents in their new order; see data_prep/native/packing.hpp for the rules."""
    left = list(range(len(lengths)))
    order: list[int] = []
    room = seq_length
    while left:
        document = _following(left, lengths, seq_length, room)
        left.remove(document)
        order.append(document)
        filled = (seq_length - room + lengths[document]) % seq_length
        room = seq_length - filled
    return order


def _following(left: list[int], lengths: Sequence[int], seq_length: int, room: int) -> int:
    sizes = {document: (lengths[document] - 1) % seq_length + 1 for document in left}
    long = [document for document in left if lengths[document] > seq_length]
    whole = [document for document in left if lengths[document] <= seq_length]
    first = max(left, key=lambda d: (sizes[d], lengths[d] > seq_length, -d))
    if room == seq_length and lengths[first] > seq_length:
        return first
    if fitting := [d for d in whole if sizes[d] <= room]:
        largest = max(fitting, key=lambda d: (sizes[d], -d))
        if 0 < room - sizes[largest] < min(sizes[d] for d in whole):
            paired = [d for d in fitting if any(sizes[d] + sizes[o] == room for o in whole if o != d)]
            return max(paired, key=lambda d: (sizes[d], -d), default=largest)
        return largest
    if fitting := [d for d in long if sizes[d] <= room]:
        return max(fitting, key=lambda d: (sizes[d], -d))
    return min(long or whole, key=lambda d: (sizes[d], d))
