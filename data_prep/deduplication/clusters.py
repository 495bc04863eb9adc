"""Which document of each cluster of duplicates stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.core.shuffle import Shuffle, column, grouped, producer, scatter, sort_table
from data_prep.deduplication.signatures import OLD_PARTS, RECORD_BITS, Catalog, part_key
from data_prep.documents.reading import Document, write_documents

REASONS = ("near_duplicate", "exact_duplicate")
_RANKED = ("id", "lang", "source", "priority", "quality", "characters", "exact")
_AT_ONCE = 500_000  # documents with what ranks them: 70 MB


def members(partition: int, number: int, *, found: Shuffle, partitions: int, target: Shuffle) -> dict[str, Any]:
    """One range of clustered documents, sent to their parts."""
    table = found.read(partition, partitions)
    node, other = column(table, "node"), column(table, "other")
    node, other = node[other < node], other[other < node]
    roots = np.unique(other)
    document, cluster = np.concatenate((node, roots)), np.concatenate((other, roots))
    target.write(number, part_key(document >> np.uint64(RECORD_BITS)), {"document": document, "cluster": cluster})
    return {"documents": int(node.size)}


def rank(
    partition: int, number: int, *, source: Shuffle, partitions: int, catalog: Catalog, target: Shuffle
) -> dict[str, Any]:
    """The clustered documents of some parts, with what ranks them, sent to their cluster's range.

    24 bytes of a document came here, and some 100 and its id go on.
    """
    chunks = count()
    for table in source.tables(partition, partitions):
        # the root of a cluster comes from every range that holds one of its members
        documents, first = np.unique(column(table, "document"), return_index=True)
        clusters = column(table, "cluster")[first]
        for at in range(0, max(1, documents.size), _AT_ONCE):
            document, cluster = documents[at : at + _AT_ONCE], clusters[at : at + _AT_ONCE]
            ranked = catalog.gather(document, _RANKED)
            columns = {"document": document, "cluster": cluster, **{name: ranked[name] for name in _RANKED}}
            target.write(producer(number, next(chunks)), scatter(cluster), columns)
    target.remove_chunks(number, next(chunks))
    return {}


def choose(
    partition: int, number: int, *, source: Shuffle, partitions: int, drops: Shuffle, output: Path
) -> dict[str, Any]:
    """Which document of each cluster in one range stays, and a line for each cluster under clusters/.

    A document that an older run kept stays whatever its rank, and all new ones of its cluster go.
    """
    table = source.read(partition, partitions)
    old = column(table, "document") >= np.uint64(OLD_PARTS << RECORD_BITS)
    table = table.append_column("new", pa.array((~old).astype(np.int8)))
    order = [("cluster", "ascending"), ("new", "ascending"), ("priority", "ascending"), ("quality", "descending"),
             ("characters", "descending"), ("id", "ascending"), ("exact", "ascending"), ("document", "ascending")]  # fmt: skip
    table = sort_table(table, *order)
    cluster, document, new = (column(table, name) for name in ("cluster", "document", "new"))
    # a part with more documents in clusters than fit in memory may have sent a root twice
    distinct = np.ones(document.size, bool)
    distinct[1:] = document[1:] != document[:-1]
    table, cluster, document, new = (
        table.filter(pa.array(distinct)),
        cluster[distinct],
        document[distinct],
        new[distinct],
    )
    starts, ends = grouped(cluster)
    keeper = np.zeros(document.size, bool)
    keeper[starts] = True
    exact = column(table, "exact").view(np.uint64)
    like_keeper = (exact == exact[starts].repeat(ends - starts, axis=0)).all(axis=1) if exact.size else keeper
    gone = ~keeper & (new == 1)
    part = document >> np.uint64(RECORD_BITS)
    drops.write(
        number,
        part_key(part[gone]),
        {"record": document[gone] & np.uint64((1 << RECORD_BITS) - 1), "exact": like_keeper[gone].astype(np.uint8)},
    )
    write_documents(output / "clusters" / f"{number:05d}.jsonl.zst", _clusters(table, starts, ends, gone, like_keeper))
    return {"clusters": _sizes(starts, ends, gone)}


def _sizes(starts: np.ndarray, ends: np.ndarray, gone: np.ndarray) -> dict[str, int]:
    """How many clusters there are of each number of documents; those of old documents alone do not count."""
    sizes = Counter(int(end - start) for start, end in zip(starts, ends, strict=True) if gone[start:end].any())
    return {str(size): number for size, number in sorted(sizes.items())}


def _clusters(table: pa.Table, starts, ends, gone, like_keeper) -> Iterator[Document]:
    ids = table["id"]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        dropped = [[ids[i].as_py(), REASONS[int(like_keeper[i])]] for i in range(start, end) if gone[i]]
        if dropped:
            yield {"kept": ids[start].as_py(), "dropped": dropped}
