"""The order of documents that keeps them whole in sequences cut back to back, and what it achieves.

The documents stay as they are; only their order changes. So no token is lost, none is there twice, and a document that
has to be cut goes on in the next sequence, whose first token is the target of the last one, as the loader reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep._native import packed_order
from data_prep.core.shuffle import scatter


def order_of(lengths: np.ndarray, seq_length: int) -> np.ndarray:
    """The order of documents of so many tokens, packed for sequences of `seq_length`, these in pseudorandom order."""
    order = packed_order(lengths.astype(np.int32), seq_length).astype(np.int64)
    return order[_shuffled_runs(lengths[order], seq_length)]


def _shuffled_runs(lengths: np.ndarray, seq_length: int) -> np.ndarray:
    """An order of the runs of documents that begin and end where a sequence does; what follows the last stays there."""
    ends = np.flatnonzero(np.cumsum(lengths, dtype=np.int64) % seq_length == 0) + 1
    starts = np.concatenate(([0], ends[:-1])) if ends.size else ends
    runs = np.argsort(scatter(np.arange(ends.size)), kind="stable")
    sizes = (ends - starts)[runs]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rest = np.arange(ends[-1] if ends.size else 0, lengths.size)
    return np.concatenate((np.repeat(starts[runs], sizes) + within, rest))


def pieces_of(lengths: np.ndarray, seq_length: int) -> np.ndarray:
    """In how many sequences each document lies, where documents of so many tokens lie back to back."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return (ends - 1) // seq_length - (ends - lengths) // seq_length + 1


def cuts_of(lengths: np.ndarray, seq_length: int) -> dict[str, int]:
    """Documents and tokens that fit one sequence and are cut, and cuts of longer documents beyond those that they need."""
    pieces, fits = pieces_of(lengths, seq_length), lengths <= seq_length
    cut = fits & (pieces > 1)
    longer = ~fits
    needed = -(-lengths[longer] // seq_length)
    return {
        "documents_cut": int(cut.sum()),
        "tokens_cut": int(lengths[cut].sum(dtype=np.int64)),
        "more_cuts": int((pieces[longer] - needed).sum()),
    }


def packing_facts(lengths: np.ndarray, order: np.ndarray, seq_length: int) -> dict[str, Any]:
    """Counts of a shard's documents before and after packing, to be added to those of others."""
    fits, total = lengths <= seq_length, int(lengths.sum(dtype=np.int64))
    sequences = max(0, total - 1) // seq_length  # as the loader counts: the last one needs a target
    bins, counts = np.unique(np.frexp(lengths)[1], return_counts=True)
    return {
        "fitting_documents": int(fits.sum()),
        "fitting_tokens": int(lengths[fits].sum(dtype=np.int64)),
        "longer_documents": int((~fits).sum()),
        "before": cuts_of(lengths, seq_length),
        "after": cuts_of(lengths[order], seq_length),
        "sequences": sequences,
        "tokens_in_no_sequence": total - sequences * seq_length,
        "log2_tokens": {f"{b:02d}": int(n) for b, n in zip(bins.tolist(), counts.tolist(), strict=True)},
    }


def sentence_of(source: str, facts: dict[str, Any], seq_length: int) -> str:
    """How many of a source's documents that fit a sequence are cut, as they lay and as they lie now."""
    shares = [
        f"{_share(facts[when]['documents_cut'], facts['fitting_documents'])} with "
        f"{_share(facts[when]['tokens_cut'], facts['fitting_tokens'])} of their tokens"
        for when in ("before", "after")
    ]
    return (
        f"{source}: of the documents that fit {seq_length:,} tokens, {shares[0]} would be cut in their old order, and "
        f"{shares[1]} in the new one"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"
