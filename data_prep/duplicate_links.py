"""Pairs of duplicate documents: equal exact hashes, or a shared band and signatures that agree enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.components import unique_edges
from data_prep.exchange import Exchange, column, grouped, scatter, sort_table
from data_prep.minhash import similarity
from data_prep.signatures import OLD_PARTS, RECORD_BITS, Catalog

_COMPARED = 200_000  # pairs whose signatures are in memory at a time: 100 MB


def spread_bands(number: int, task: int, *, catalog: Catalog, bands: Exchange, exact: Exchange) -> dict[str, Any]:
    """Rows of one part for the candidates: each document under each of its band keys, and under its exact hash."""
    for chunk, table in enumerate(catalog.part(number)):
        if number >= OLD_PARTS:  # of an older run, what it kept
            kept = ~np.isin(column(table, "record"), column(catalog.drops(number), "record"))
            table = table.filter(pa.array(kept))
        documents = column(table, "record") | np.uint64(number << RECORD_BITS)
        exact_N2 = column(table, "exact").view(np.uint64)
        keys_NB = column(table, "bands").view(np.uint64)
        width = keys_NB.shape[1]
        producer = task * 1000 + chunk
        bands.write(
            producer, keys_NB.ravel(), {"document": documents.repeat(width), "exact": exact_N2[:, 0].repeat(width)}
        )
        exact.write(producer, exact_N2[:, 0].copy(), {"document": documents, "rest": exact_N2[:, 1].copy()})
    return {}


def link_exact(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Edges between documents of one exact hash: the first of each group with the others."""
    table = sort_table(table, ("key", "ascending"), ("rest", "ascending"), ("document", "ascending"))
    key, rest, document = (column(table, name) for name in ("key", "rest", "document"))
    starts, ends = grouped(scatter(key) ^ rest)
    return _star(document, starts, ends)


def link_similar(table: pa.Table, catalog: Catalog, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges between documents that share a band key and whose signatures agree enough.

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
    left, right = unique_edges(np.minimum(left, right), np.maximum(left, right))
    if left.size == 0:
        return left, right
    alike = (
        np.concatenate(
            [
                similarity(
                    *(
                        column(catalog.gather(side[at : at + _COMPARED], ("packed",)), "packed")
                        for side in (left, right)
                    )
                )
                for at in range(0, left.size, _COMPARED)
            ]
        )
        >= threshold
    )
    return left[alike], right[alike]


def _star(document: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if document.size == 0:
        return document, document
    first = document[starts].repeat(ends - starts)
    other = np.ones(document.size, bool)
    other[starts] = False
    return first[other], document[other]


def candidates(
    task: tuple[str, int, int],
    number: int,
    *,
    bands: Exchange,
    exact: Exchange,
    catalog: Catalog,
    threshold: float,
    edges: Exchange,
) -> dict[str, Any]:
    """Edges of one range of band keys or exact hashes."""
    kind, partition, partitions = task
    if kind == "exact":
        left, right = link_exact(exact.read(partition, partitions))
    else:
        left, right = link_similar(bands.read(partition, partitions), catalog, threshold)
    node, other = np.concatenate((left, right)), np.concatenate((right, left))
    edges.write(number, scatter(node), {"node": node, "other": other})
    return {"edges": int(left.size)}
