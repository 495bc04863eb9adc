"""Token rows of documents on their way to shards: a series for each source and split, shuffled by keys."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from data_prep.core.shuffle import Shuffle, list_value, producer
from data_prep.core.tally import merged
from data_prep.documents.reading import Document
from recipe.base.files import sha256
from recipe.data.indexed import SUFFIXES, ShardWriter, token_dtype

CHUNK_TOKENS = 24_000_000  # of one series in memory at a time: 96 MB, twice when it is ordered
SHUFFLE_SEED = 20_260_102
MAX_NAME_BYTES = 100  # of a source, in names of folders, of which file systems take 255 with what stands before it


def source_name(document: Document, source_by: str, bilingual: str = "language") -> str:
    """Name of the shard series that a document goes to, safe as a folder name.

    Args:
        document: with its labels.
        source_by: `lang`, `source`, or `both` as lang-source.
        bilingual: series of documents that join two languages: those of their main `language`, or series of their own:
            one (`apart`, named bilingual) or one for each way to join them (`label`, named bilingual-parallel and so on).
            These names take the place of a language's.
    """
    fields = {"lang": ("lang",), "source": ("source",), "both": ("lang", "source")}[source_by]
    values = [str(document.get(field, "unknown")) for field in fields]
    if bilingual != "language" and (label := document.get("bilingual")):
        own = ["bilingual"] if bilingual == "apart" else ["bilingual", str(label)]
        values = own + [value for field, value in zip(fields, values, strict=True) if field != "lang"]
    names = (re.sub(r"[^\w.-]+", "_", value).strip("._-") for value in values)
    name = "-".join(name or "unnamed" for name in names)
    return name if len(name) <= MAX_NAME_BYTES // 4 or len(name.encode()) <= MAX_NAME_BYTES else _shortened(name)


def _shortened(name: str) -> str:
    """The beginning of a long name, and a hash that keeps it apart from others with that beginning."""
    digest = "_" + xxhash.xxh3_64_hexdigest(name.encode("utf-8", "surrogatepass"))
    return name.encode()[: MAX_NAME_BYTES - len(digest)].decode("utf-8", "ignore") + digest


class Rows:
    """Token rows of one part for one series of shards, sent in pieces of bounded size."""

    def __init__(self, target: Shuffle, number: int):
        self._target, self._number, self._chunk = target, number, 0
        self._totals: dict[str, Any] = {"documents": 0, "tokens": 0, "text_bytes": 0}
        self._licenses: Counter[str] = Counter()  # tokens by the licence that the document carried
        self._clear()

    def _clear(self) -> None:
        self._keys: list[int] = []
        self._bytes: list[int] = []
        self._tokens: list[np.ndarray] = []
        self._size = 0

    def add(self, document: Document, ids: np.ndarray, eod: int) -> None:
        text = document["text"].encode()
        self._keys.append(xxhash.xxh3_64_intdigest(document["id"].encode() + b"\0" + text, seed=SHUFFLE_SEED))
        self._bytes.append(len(text))
        self._tokens.append(np.append(ids, np.uint32(eod)))
        self._size += ids.size + 1
        self._licenses[str(document.get("license") or "not stated")] += ids.size + 1
        self.flush_if_full()

    def flush_if_full(self) -> None:
        if self._size >= CHUNK_TOKENS:
            self._flush()

    def close(self) -> dict[str, Any]:
        self._flush()
        self._target.remove_chunks(self._number, self._chunk)
        return {**self._totals, "licenses": dict(self._licenses)}

    def _flush(self) -> None:
        keys = np.array(self._keys, np.uint64)
        order = np.argsort(keys, kind="stable")  # here already, where it moves documents and not their tokens' lists
        ordered = [self._tokens[place] for place in order.tolist()]
        ends = np.cumsum([0, *(tokens.size for tokens in ordered)], dtype=np.int64)
        flat = pa.array(np.concatenate([np.zeros(0, np.uint32), *ordered]))
        tokens = pa.LargeListArray.from_arrays(pa.array(ends), flat)
        columns = {"text_bytes": np.array(self._bytes, np.int64)[order], "tokens": tokens}
        self._target.write(producer(self._number, self._chunk), keys[order], columns)
        for name, size in (("documents", len(self._keys)), ("tokens", self._size), ("text_bytes", sum(self._bytes))):
            self._totals[name] += size
        self._chunk += 1
        self._clear()


class TokenRows(Rows):
    """Token rows of one piece for one series of shards."""

    def add_tokens(self, tokens: np.ndarray, text_bytes: int, eod: int) -> None:
        row = np.empty(tokens.size + 1, np.uint32)
        row[:-1], row[-1] = tokens, eod
        self._keys.append(xxhash.xxh3_64_intdigest(tokens.data, seed=SHUFFLE_SEED))
        self._bytes.append(text_bytes)
        self._tokens.append(row)
        self._size += row.size
        self._licenses["not stated"] += row.size
        self.flush_if_full()


def write_shard(task: dict[str, Any], number: int, *, shuffle: Path, output: Path, vocab_size: int) -> dict[str, Any]:
    """One shard: the rows of one range of keys, in their order."""
    rows = Shuffle(shuffle / f"{task['split']}-{task['source']}").ordered(task["partition"], task["partitions"])
    prefix = Path("shards") / task["split"] / task["source"] / f"{task['partition']:05d}"
    entry = {"prefix": str(prefix), "split": task["split"], "source": task["source"], "documents": 0, "text_bytes": 0}
    writer = ShardWriter(output / prefix, token_dtype(vocab_size), vocab_size)
    for table, row in rows:
        writer.add_document(list_value(table, "tokens", row))
        entry["text_bytes"] += table["text_bytes"][row].as_py()
        entry["documents"] += 1
    writer.close()
    hashes = {suffix: sha256(output / f"{prefix}{suffix}") for suffix in SUFFIXES}
    return {**entry, "tokens": writer.num_tokens, "sha256": hashes}


def shard_tasks(series: dict[str, Any], max_shard_tokens: int) -> list[dict[str, Any]]:
    """The shards of every series, each about equally large and none much larger than `max_shard_tokens`."""
    tasks = []
    for _, entry in sorted(series.items()):
        shards = max(1, -(-entry["tokens"] // max_shard_tokens))
        for i in range(shards):
            tasks.append({"split": entry["split"], "source": entry["source"], "partition": i, "partitions": shards})
    return tasks


def totals_of(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Documents, tokens and text bytes by split and source."""
    names = ("documents", "tokens", "text_bytes")
    return merged({shard["split"]: {shard["source"]: {name: shard[name] for name in names}}} for shard in shards)
