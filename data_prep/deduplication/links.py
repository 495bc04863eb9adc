"""Pairs of duplicate documents: equal exact hashes, or a shared band and signatures that agree enough.

Documents meet under their band keys, and the pairs travel to where the signatures are: first to the part of the left
document, where pairs of several bands become one, and on with its signature to the part of the right one. So each
part's signatures are opened twice, however many ranges of band keys there are. Of a document in a cluster travel some
24 bytes for each pair in each band (two pairs at most), then 280 bytes for each pair that is left.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.core.shuffle import Shuffle, column, grouped, producer, scatter, sort_table
from data_prep.deduplication.components import unique_edges
from data_prep.deduplication.minhash import MinHash, similarity
from data_prep.deduplication.signatures import OLD_PARTS, RECORD_BITS, Catalog, part_key

_SIGNED = 200_000  # pairs with a signature in memory at a time: 56 MB


def spread_bands(
    number: int, task: int, *, catalog: Catalog, minhash: tuple[int, int, int, int], bands: Shuffle, exact: Shuffle
) -> dict[str, Any]:
    """Rows of one part for the candidates: each document under each of its band keys, and under its exact hash.

    Documents with fewer words than an n-gram have no bands: equality alone says that they are duplicates.
    """
    hashes = MinHash(*minhash)
    gone = column(catalog.drops(number), "record") if number >= OLD_PARTS else None  # of an older run, what it kept
    tables = catalog.part(number)
    for chunk, table in enumerate(tables):
        if gone is not None:
            table = table.filter(pa.array(~np.isin(column(table, "record"), gone)))
        documents = column(table, "record") | np.uint64(number << RECORD_BITS)
        exact_N2 = column(table, "exact").view(np.uint64)
        exact.write(
            producer(task, chunk), exact_N2[:, 0].copy(), {"document": documents, "rest": exact_N2[:, 1].copy()}
        )
        keys_NB = column(table, "bands").view(np.uint64)
        compared = ~hashes.lacks_ngrams(keys_NB)
        keys_NB, first_N, documents = keys_NB[compared], exact_N2[compared, 0], documents[compared]
        columns = {"document": documents.repeat(hashes.bands), "exact": first_N.repeat(hashes.bands)}
        bands.write(producer(task, chunk), keys_NB.ravel(), columns)
    for target in (exact, bands):
        target.remove_chunks(task, len(tables))
    return {}


def link_exact(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Edges between documents of one exact hash: the first of each group with the others."""
    table = sort_table(table, ("key", "ascending"), ("rest", "ascending"), ("document", "ascending"))
    key, rest, document = (column(table, name) for name in ("key", "rest", "document"))
    starts, ends = grouped(scatter(key) ^ rest)
    return _star(document, starts, ends)


def pairs_in_bands(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (smaller, larger) of documents that share a band key, to compare.

    Within a bucket, ordered by content, each document is compared with its neighbour and with the first; one of
    each exact group takes part.
    """
    table = sort_table(table, ("key", "ascending"), ("exact", "ascending"), ("document", "ascending"))
    key, exact, document = (column(table, name) for name in ("key", "exact", "document"))
    new = np.ones(key.size, bool)
    new[1:] = (key[1:] != key[:-1]) | (exact[1:] != exact[:-1])
    key, document = key[new], document[new]
    starts, ends = grouped(key)
    first = _star(document, starts, ends)
    same = key[1:] == key[:-1]
    left, right = np.concatenate((first[0], document[:-1][same])), np.concatenate((first[1], document[1:][same]))
    return unique_edges(np.minimum(left, right), np.maximum(left, right))


def _star(document: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if document.size == 0:
        return document, document
    first = document[starts].repeat(ends - starts)
    other = np.ones(document.size, bool)
    other[starts] = False
    return first[other], document[other]


def candidates(
    task: tuple[str, int, int], number: int, *, bands: Shuffle, exact: Shuffle, pairs: Shuffle, edges: Shuffle
) -> dict[str, Any]:
    """Edges of one range of exact hashes, or pairs to compare of one range of band keys."""
    kind, partition, partitions = task
    if kind == "exact":
        return _write_edges(edges, number, *link_exact(exact.read(partition, partitions)))
    left, right = pairs_in_bands(bands.read(partition, partitions))
    pairs.write(number, _part_keys(left), {"left": left, "right": right})
    return {"pairs": int(left.size)}


def sign_left(
    partition: int, number: int, *, source: Shuffle, partitions: int, catalog: Catalog, target: Shuffle
) -> dict[str, Any]:
    """The pairs of some parts' left documents, each once, with those documents' signatures, sent to the right ones."""
    chunks, size = count(), 0
    for table in source.tables(partition, partitions):
        lefts, rights = unique_edges(column(table, "left"), column(table, "right"))
        size += lefts.size
        for at in range(0, max(1, lefts.size), _SIGNED):
            left, right = lefts[at : at + _SIGNED], rights[at : at + _SIGNED]
            columns = {"left": left, "right": right, "packed": catalog.gather(left, ("packed",))["packed"]}
            target.write(producer(number, next(chunks)), _part_keys(right), columns)
    target.remove_chunks(number, next(chunks))
    return {"pairs": int(size)}


def compare(
    partition: int,
    number: int,
    *,
    source: Shuffle,
    partitions: int,
    catalog: Catalog,
    threshold: float,
    edges: Shuffle,
    first: int,
) -> dict[str, Any]:
    """Edges of the pairs whose signatures agree enough, at some parts' right documents.

    Args:
        first: the first number that this phase's tasks have among the producers of `edges`.
    """
    left, right = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for table in source.tables(partition, partitions):
        signed = catalog.gather(column(table, "right"), ("packed",))
        alike = similarity(column(table, "packed"), column(signed, "packed")) >= threshold
        left.append(column(table, "left")[alike])
        right.append(column(table, "right")[alike])
    return _write_edges(edges, first + number, np.concatenate(left), np.concatenate(right))


def _write_edges(edges: Shuffle, number: int, left: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    node, other = np.concatenate((left, right)), np.concatenate((right, left))
    edges.write(number, scatter(node), {"node": node, "other": other})
    return {"edges": int(left.size)}


def _part_keys(documents: np.ndarray) -> np.ndarray:
    return part_key(documents >> np.uint64(RECORD_BITS))
