"""Documents that hold evaluation items, and the sequences that so many documents hold that they are no item's own.

Every document is read once, as if no sequence were frequent. Then the documents that hold each are counted, and only parts of
the input with a frequent one are read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.core.inputs import Reading, read_part
from data_prep.core.shuffle import KEY, Shuffle, column, grouped, read_table, write_table
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import Tally
from data_prep.curation.characters import native
from data_prep.decontamination.grams import EXAMPLES, GROUPS, example, folded_characters, per_group
from data_prep.decontamination.settings import DecontaminateConfig
from data_prep.documents.reading import Document, write_documents, write_part

FREQUENT = "frequent.arrow"


class Overlap(NamedTuple):
    """What of the evaluation sets a document holds."""

    ngrams: Counter[str]  # by set, how many different ones
    wholes: Counter[str]  # likewise short items
    texts: dict[int, str]  # by hash, as the document has them

    def contaminates(self, max_shared: int) -> bool:
        """A short item as a whole is enough; of n-grams so many may be there."""
        return bool(self.wholes) or self.ngrams.total() > max_shared


class Matcher:
    """Looks for sequences of evaluation items in documents.

    Args:
        grams: the folder that `merge_items` wrote.
        config: its configuration.
        frequent: hashes of sequences that do not count, sorted.
    """

    def __init__(self, grams: Path, config: DecontaminateConfig, frequent: np.ndarray | None = None):
        self._native = native.Overlap(folded_characters())
        self._hashes, self._sets = list[np.ndarray](), list[pa.ChunkedArray]()
        for group in GROUPS:
            table = read_table(grams / f"{group.name}.arrow")
            if frequent is not None:
                table = table.filter(pa.array(~np.isin(column(table, "hash"), frequent)))
            hashes = column(table, "hash")
            self._hashes.append(hashes)
            self._sets.append(table["set"])
            if group.whole:
                prefixes, lengths = column(table, "prefix"), column(table, "length")
                self._native.add_wholes(config.least(group.script), prefixes, lengths, hashes)
            else:
                self._native.add_ngrams(config.length(group.script), hashes)

    def find(self, text: str) -> Overlap:
        found = Overlap(Counter(), Counter(), {})
        by_group: dict[int, set[int]] = {}
        for group, value, start, stop in self._native.find(text):
            by_group.setdefault(group, set()).add(value)
            found.texts.setdefault(value, text[start:stop])
        for group, values in by_group.items():
            places = np.searchsorted(self._hashes[group], np.array(sorted(values), np.uint64))
            sets = self._sets[group].take(pa.array(places)).to_pylist()
            (found.wholes if GROUPS[group].whole else found.ngrams).update(sets)
        return found


def clean_part(
    documents: Iterable[Document],
    number: int,
    *,
    grams: Path,
    config: DecontaminateConfig,
    output: Path,
    counted: Path | None,
) -> dict[str, Any]:
    """Write one part without contaminated documents, and these apart.

    Args:
        documents, number: of the part.
        grams: the folder that `merge_items` wrote.
        counted: the shuffle for the documents that hold each sequence; None when frequent ones are known.
    """
    frequent = None if counted else column(read_table(grams / FREQUENT), "hash")
    matcher, tally, seen = Matcher(grams, config, frequent), Tally(), Seen()
    sets: Counter[str] = Counter()
    removed: list[Document] = []

    def kept() -> Iterator[Document]:
        for document in documents:
            found = matcher.find(document["text"])
            seen.add(found.texts)
            reason = "contaminated" if found.contaminates(config.max_shared) else None
            size = len(document["text"].encode())
            tally.add(str(document.get("lang", "unknown")), str(document.get("source", "unknown")), size, reason, size)
            if reason is None:
                yield document
            else:
                shared = found.ngrams + found.wholes
                sets.update(shared.keys())
                removed.append({**document, "dropped": reason, "evaluation_ngrams": dict(sorted(shared.items()))})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", removed)
    if counted:
        seen.write(Shuffle(counted), number)
    return {"groups": tally.groups(), "documents_by_set": dict(sets), "files": written.below(output)}


class Seen:
    """In how many documents of one part each sequence occurs, and the text of one occurrence."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, str]] = {}

    def add(self, texts: dict[int, str]) -> None:
        for value, text in texts.items():
            documents, first = self._rows.get(value, (0, text))
            self._rows[value] = documents + 1, first

    def write(self, target: Shuffle, number: int) -> None:
        columns = {
            "documents": np.array([documents for documents, _ in self._rows.values()], np.int64),
            "text": pa.array([example(text) for _, text in self._rows.values()], pa.string()),
            "part": np.full(len(self._rows), number, np.int32),
        }
        target.write(number, np.array(list(self._rows), np.uint64), columns)


def find_frequent(shuffle: Shuffle, number: int, *, config: DecontaminateConfig, grams: Path) -> dict[str, Any]:
    """The sequences that more documents hold than `max_corpus_documents`, into a file, and the parts with such documents."""
    limit = config.max_corpus_documents
    parts, hashes, found = set[int](), list[np.ndarray](), list[tuple[int, int, str]]()
    partitions = shuffle.partitions()
    for partition in range(partitions):
        table = shuffle.read(partition, partitions)
        keys = column(table, KEY)
        starts, ends = grouped(keys)
        documents = per_group(np.add, column(table, "documents"), starts)
        frequent = documents > limit if limit is not None else np.zeros(starts.size, bool)
        parts.update(column(table, "part")[np.repeat(frequent, ends - starts)].tolist())
        hashes.append(keys[starts][frequent])
        texts = table["text"].take(pa.array(starts[frequent])).to_pylist()
        found += zip((-documents[frequent]).tolist(), hashes[-1].tolist(), texts, strict=True)
        found = sorted(found)[:EXAMPLES]
    write_table(grams / FREQUENT, pa.table({"hash": pa.array(np.concatenate(hashes))}))
    return {
        "frequent_ngrams": sum(values.size for values in hashes),
        "frequent_examples": [{"documents": -documents, "text": text} for documents, _, text in found],
        "parts": sorted(parts),
    }


def clean_documents(stage: Stage, grams: Path, config: DecontaminateConfig) -> tuple[list[dict], dict[str, Any]]:
    """The phases that read documents.

    Returns:
        the result of each part; what is frequent, for the manifest.
    """
    counted = stage.shuffle("counted")
    work = partial(clean_part, grams=grams, config=config, output=stage.output)
    first = for_documents(stage, work=partial(work, counted=counted.folder))
    results = stage.run_tasks("documents", first, stage.parts)
    if not results:
        return results, {}
    counted.merge(stage.run_tasks)
    (frequent,) = stage.run_tasks("frequent", partial(find_frequent, config=config, grams=grams), [counted])
    parts = frequent.pop("parts")
    again = [(number, stage.inputs.reading(stage.parts[number])) for number in parts]
    function = partial(_read_again, function=for_documents(stage, work=partial(work, counted=None)))
    for number, result in zip(parts, stage.run_tasks("again", function, again), strict=True):
        results[number] = result
    return results, frequent


def _read_again(task: tuple[int, Reading], number: int, *, function: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    part, reading = task
    return read_part(reading, part, function=function)
