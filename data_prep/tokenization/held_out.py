"""Which documents are kept from training, and sources where that share is not what was asked for."""

from __future__ import annotations

import math
from typing import Any

import xxhash

UNLIKELY_NATS = 20.0  # exp(-20) is 2e-9
ENOUGH_IDS = 0.8  # different ones a document, beyond the error of the sketch
MANY_DOCUMENTS = 1000  # of a source, of which a share can be held out


def is_held_out(identity: str, share: float) -> bool:
    """Whether a document is kept from training; depends on its id alone, so a larger crawl keeps the choice."""
    return xxhash.xxh3_64_intdigest(identity.encode(), seed=20_260_101) < share * 2**64


def held_out_far_off(totals: dict[str, Any], share: float) -> dict[str, Any]:
    """Sources whose held-out share of documents is not what was asked for, by source; see `is_far_off`."""
    return {source: counts for source, counts in _held_out(totals).items() if is_far_off(**counts, share=share)}


def _held_out(totals: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Documents by source, all of them and those that are held out."""
    counts = {}
    for source in sorted({source for sources in totals.values() for source in sources}):
        train, held_out = (totals.get(split, {}).get(source, {}).get("documents", 0) for split in ("train", "held_out"))
        counts[source] = {"documents": train + held_out, "held_out": held_out}
    return counts


def few_held_out(totals: dict[str, Any], ids: dict[str, int], share: float) -> dict[str, Any]:
    """Sources of which nothing is held out or whose documents share ids, so that the held-out ones are a matter of chance.

    Args:
        totals: by split and source.
        ids: different ones, by source.
        share: asked for.
    """
    return {
        source: {**counts, "ids": ids[source]}
        for source, counts in _held_out(totals).items()
        if share and counts["documents"] >= MANY_DOCUMENTS and source in ids and not is_far_off(**counts, share=share)
        if not counts["held_out"] or ids[source] < ENOUGH_IDS * counts["documents"]
    }


def none_held_out(totals: dict[str, Any]) -> list[str]:
    """Sources of which no document is held out, by the totals by split and source."""
    return [source for source, counts in _held_out(totals).items() if counts["documents"] and not counts["held_out"]]


def is_far_off(held_out: int, documents: int, share: float) -> bool:
    """Whether a held-out share is off by more than a factor of 3, and no chance if each document had its own id.

    The chance is at most exp(-documents * KL(found || share)), Chernoff's bound for a binomial (Hoeffding 1963, theorem 1).
    """
    if documents < MANY_DOCUMENTS or share == 0 or share / 3 <= held_out / documents <= 3 * share:
        return False
    found = held_out / documents
    terms = ((found, share), (1 - found, 1 - share))
    return documents * sum(p * math.log(p / q) for p, q in terms if p > 0) > UNLIKELY_NATS
