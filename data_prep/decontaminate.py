#!/usr/bin/env python3
"""Remove documents that contain parts of evaluation sets, before they are tokenized.

An item of an evaluation set is all text of a record: question, choices, answer. A document is removed when it has a sequence
of words (in Chinese of characters) from an item. Sequences that many items have are templates and do not count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import Field

from data_prep.core.command import job_parser
from data_prep.core.shuffle import KEY, Shuffle, column, grouped, read_table, write_table
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import Tally, merged, with_totals
from data_prep.curation.characters import native
from data_prep.documents.compression import damage_named, unpacked
from data_prep.documents.json_lines import BOM, layout
from data_prep.documents.listing import KNOWN, every_file, is_named_as_documents, is_parquet
from data_prep.documents.reading import Document, Part, parts_of, records, write_documents, write_part
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import sha256
from recipe.base.strict import Section, load_yaml, strict_model

PENDING_NGRAMS = 4_000_000  # of items, before they are counted: 32 MB


class DecontaminateConfig(Section):
    ngram_words: int = Field(13, gt=1)
    ngram_characters: int = Field(20, gt=1)
    template_items: int = Field(10, gt=1)
    max_shared: int = Field(0, ge=0)
    ignored_fields: list[str] = []


def evaluation_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of evaluation sets at `path` in a stable order, and the files beside them that are not read.

    Raises:
        UserError: nothing is there.
    """
    if not path.exists():
        raise UserError(f"--evaluation {path} does not exist; give a file or folder of evaluation sets")
    files = every_file([path])
    known = [file for file in files if is_named_as_documents(file) and file.is_file()]
    if not known:
        raise UserError(f"--evaluation {path} holds no file of an evaluation set; these are files named {KNOWN}")
    return known, [file for file in files if file not in set(known)]


def evaluation_parts(path: Path) -> list[Part]:
    return [Part(path)] if _is_one_value(path) else parts_of(path)


def _is_one_value(path: Path) -> bool:
    """Whether a file may hold one JSON array or object, by its name or its beginning."""
    return not is_parquet(path) and (".json" in path.suffixes[-2:] or layout(path) in ("array", "object"))


def items_of(part: Part, many: int) -> Iterator[Any]:
    """The items of a part of an evaluation set: its records, or those in the one JSON value of the file.

    Args:
        part: the part.
        many: a list of so many objects in the object of such a file holds items.

    Raises:
        UserError: a line, or the file, is not JSON.
    """
    if _is_one_value(part.path):
        yield from _items_of_json(part.path, many)
        return
    for raw in records(part):
        yield _value_of_line(raw, part.path) if isinstance(raw, bytes) else raw


def _items_of_json(path: Path, many: int) -> Iterator[Any]:
    """The elements of an array; an object, and the elements of long lists in it apart (SQuAD's `data`); lines of JSON."""
    with damage_named(path), open(path, "rb") as raw:
        content = unpacked(path, raw).read()
    try:
        value = _value(content)
    except ValueError:
        yield from (_value_of_line(line, path) for line in content.splitlines() if line.strip())
        return
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list) and len(inner) >= many]
        yield {key: inner for key, inner in value.items() if key not in lists}
        yield from (item for key in lists for item in value[key])
    else:
        yield from value if isinstance(value, list) else [value]


def _value_of_line(raw: bytes, path: Path) -> Any:
    try:
        return _value(raw)
    except ValueError as error:
        begins = raw[:60].decode("utf-8", "replace").strip()
        raise UserError(
            f"{path} has a line that is not JSON ({error}), which begins with {begins!r}; mend the evaluation set"
        ) from None


def _value(raw: bytes) -> Any:
    """JSON, also with the byte order mark, the NaN and the halves of surrogate pairs that only Python's reader takes."""
    raw = raw.removeprefix(BOM)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace"))
        except RecursionError:
            raise ValueError("nested too deeply") from None


def texts_of(record: Any, ignored: frozenset[str]) -> Iterator[str]:
    """Every string in a record of an evaluation set, however deep, but for those under ignored keys."""
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):  # a parquet column of text without its logical type; others are no text
            with suppress(UnicodeDecodeError):
                yield value.decode()
        elif isinstance(value, dict):
            waiting.extend(inner for key, inner in reversed(value.items()) if key not in ignored)
        elif isinstance(value, list):
            waiting.extend(reversed(value))


def is_han(text: str) -> bool:
    han, kana, _, letters = native.script_counts(text)
    return 2 * (han + kana) >= letters > 0


class GramCounts:
    """In how many items each n-gram occurs; distinct n-grams are all that it holds, and as many more at times."""

    def __init__(self) -> None:
        self._counted = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._size = 0

    def add(self, hashes: np.ndarray) -> None:
        """Add the n-grams of one item."""
        self._pending.append(np.unique(hashes))
        self._size += self._pending[-1].size
        if self._size > max(PENDING_NGRAMS, self._counted[0].size):
            self.counted()

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The n-grams, sorted, and their items."""
        hashes = np.concatenate([self._counted[0], *self._pending])
        items = np.concatenate([self._counted[1], np.ones(self._size, np.int64)])
        order = np.argsort(hashes, kind="stable")
        starts, _ = grouped(hashes[order])
        self._counted = hashes[order][starts], _per_group(np.add, items[order], starts)
        self._pending, self._size = [], 0
        return self._counted


def _per_group(operation: np.ufunc, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return operation.reduceat(values, starts) if starts.size else values[:0]


def ngram_lengths(config: DecontaminateConfig) -> dict[str, int]:
    """By the kind of n-gram, which names its file too."""
    return {"words": config.ngram_words, "characters": config.ngram_characters}


@dataclass(frozen=True)
class EvaluationPart:
    """What one task reads of an evaluation set."""

    name: str
    number: int  # of the set, in the order of the files
    part: Part


def read_items(task: EvaluationPart, number: int, *, config: DecontaminateConfig, folder: Path) -> dict[str, Any]:
    """N-grams of one part of an evaluation set, with the number of its items that have each, into shuffles by kind.

    Items with fewer words than n could not be told from chance, and give none.
    """
    ignored, words, lengths = frozenset(config.ignored_fields), native.Signer(1, [], []), ngram_lengths(config)
    signers = {kind: native.Signer(length, [], []) for kind, length in lengths.items()}
    grams = {kind: GramCounts() for kind in lengths}
    items = short = 0
    for record in items_of(task.part, config.template_items):
        text = "\n".join(texts_of(record, ignored))
        kind = "characters" if is_han(text) else "words"
        items += 1
        if words.shingles(text).size < lengths[kind]:
            short += 1
        else:
            grams[kind].add(signers[kind].shingles(text))
    for kind, counts in grams.items():
        hashes, counted = counts.counted()
        columns = {"items": counted, "set": np.full(hashes.size, task.number, np.int32)}
        Shuffle(folder / kind).write(number, hashes, columns)
    return {"items": {task.name: items}, "items_without_text": {task.name: short}}


def merge_items(sets: list[str], number: int, *, config: DecontaminateConfig, folder: Path) -> dict[str, Any]:
    """The n-grams of all parts that are no templates, sorted, each with the first set that has it, for `Matcher`."""
    templates = {}
    for kind in ngram_lengths(config):
        shuffle = Shuffle(folder / kind)
        partitions, tables, templates[kind] = shuffle.partitions(), [], 0
        for partition in range(partitions):
            table = shuffle.read(partition, partitions)
            hashes = column(table, KEY)
            starts, _ = grouped(hashes)
            kept = _per_group(np.add, column(table, "items"), starts) < config.template_items
            first = _per_group(np.minimum, column(table, "set"), starts)
            templates[kind] += int((~kept).sum())
            names = pa.DictionaryArray.from_arrays(pa.array(first[kept]), pa.array(sets, pa.string()))
            tables.append(pa.table({"hash": pa.array(hashes[starts][kept]), "set": names}))
        write_table(folder / f"{kind}.arrow", pa.concat_tables(tables))
    return {"template_ngrams": templates}


class Matcher:
    """Looks for evaluation n-grams in documents."""

    def __init__(self, folder: Path, config: DecontaminateConfig):
        lengths = ngram_lengths(config)
        self._tables = {kind: read_table(folder / f"{kind}.arrow") for kind in lengths}
        self._hashes = {kind: column(table, "hash") for kind, table in self._tables.items()}
        self._overlaps = {kind: native.Overlap(lengths[kind], hashes) for kind, hashes in self._hashes.items()}

    def find(self, text: str) -> Counter[str]:
        """How many different n-grams of each evaluation set the text holds."""
        found: Counter[str] = Counter()
        for kind, overlap in self._overlaps.items():
            shared = np.unique(overlap.find(text))
            if shared.size:
                places = np.searchsorted(self._hashes[kind], shared)
                found.update(self._tables[kind]["set"].take(pa.array(places)).to_pylist())
        return found


def clean_part(
    documents: Iterable[Document], number: int, *, grams: Path, config: DecontaminateConfig, output: Path
) -> dict[str, Any]:
    matcher, tally = Matcher(grams, config), Tally()
    sets: Counter[str] = Counter()
    removed: list[Document] = []

    def kept() -> Iterator[Document]:
        for document in documents:
            found = matcher.find(document["text"])
            reason = "contaminated" if found.total() > config.max_shared else None
            size = len(document["text"].encode())
            tally.add(str(document.get("lang", "unknown")), str(document.get("source", "unknown")), size, reason, size)
            if reason is None:
                yield document
            else:
                sets.update(found.keys())
                removed.append({**document, "dropped": reason, "evaluation_ngrams": dict(sorted(found.items()))})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", removed)
    return {"groups": tally.groups(), "documents_by_set": dict(sets), "files": written.below(output)}


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/decontaminate.py --input work/deduped --evaluation eval_sets/ --output work/clean",
        "decontaminate.yaml",
    )
    parser.add_argument(
        "--evaluation",
        required=True,
        type=Path,
        metavar="DIR",
        help="evaluation sets: a file or a folder of JSON lines, JSON arrays or parquet",
    )
    args = parser.parse_args(argv)
    config = strict_model(DecontaminateConfig, load_yaml(args.config), args.config)
    paths, not_read = evaluation_files(args.evaluation)
    root = args.evaluation if args.evaluation.is_dir() else args.evaluation.parent
    files = {str(path.relative_to(root)): path for path in paths}
    hashes = {name: sha256(path) for name, path in files.items()}
    stage = Stage.of("decontaminate", args, {**config.model_dump(mode="json"), "evaluation": hashes})
    if not_read:
        names = ", ".join(str(path.relative_to(root)) for path in not_read[:5])
        print(
            f"note: {len(not_read):,} files of --evaluation are not read, such as {names}; convert those that are evaluation "
            "sets to JSON lines or parquet"
        )
    if not stage.finished:
        grams = stage.shuffle("ngrams").folder
        parts = [
            EvaluationPart(name, number, part)
            for number, (name, path) in enumerate(files.items())
            for part in evaluation_parts(path)
        ]
        items = merged(stage.run_tasks("items", partial(read_items, config=config, folder=grams), parts))
        if not any(items["items"].values()):
            raise UserError(f"--evaluation {args.evaluation} holds no items; give evaluation sets")
        (templates,) = stage.run_tasks("ngrams", partial(merge_items, config=config, folder=grams), [list(files)])
        work = partial(clean_part, grams=grams, config=config, output=stage.output)
        results = stage.run_tasks("documents", for_documents(stage, work=work), stage.parts)
        counts = with_totals(merged(result["groups"] for result in results))
        stage.must_have_documents(counts["in"])
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        by_set = merged(result["documents_by_set"] for result in results)
        stage.finish(counts=counts, written=results, results={**items, **templates, "documents_by_set": by_set})
    stage.report("kept")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
