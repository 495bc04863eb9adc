"""What evaluation items are looked for by: the n-grams of long items, and short items as a whole.

All are sequences of words, of any case and punctuation; each Chinese character is a word, and traditional characters are
read as simplified ones. An item whose text is mostly Chinese is measured in characters, any other one in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.core.shuffle import KEY, Shuffle, column, grouped, write_table
from data_prep.curation.characters import native
from data_prep.decontamination.items import items_of, texts_of
from data_prep.decontamination.settings import DecontaminateConfig
from data_prep.documents.reading import Part

PENDING_NGRAMS = 4_000_000  # of items, before they are counted: 32 MB
EXAMPLES = 5
EXAMPLE_CHARACTERS = 200
HAN_BLOCKS = (
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
)  # where OpenCC's dictionary of characters has almost all of its entries


class Group(NamedTuple):
    """Sequences that are looked for in one way; its name names its files too."""

    script: str  # words or characters
    whole: bool  # short items, not n-grams of long ones

    @property
    def name(self) -> str:
        return f"whole_{self.script}" if self.whole else self.script


GROUPS = tuple(Group(script, whole) for whole in (False, True) for script in ("words", "characters"))


@cache
def folded_characters() -> list[int]:
    """The code point that each one below 0xa000 is read as: the simplified character for a traditional one."""
    import opencc

    han = [code for first, end in HAN_BLOCKS for code in range(first, end)]
    simplified = opencc.OpenCC("t2s").convert("\n".join(map(chr, han))).split("\n")
    folded = list(range(HAN_BLOCKS[-1][1]))
    for code, char in zip(han, simplified, strict=True):
        if len(char) == 1:
            folded[code] = ord(char)
    return folded


@cache
def word_sequences() -> native.WordSequences:
    return native.WordSequences(folded_characters())


def is_han(text: str) -> bool:
    han, kana, _, letters = native.script_counts(text)
    return 2 * (han + kana) >= letters > 0


def script_of(text: str) -> str:
    return "characters" if is_han(text) else "words"


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
        self._counted = hashes[order][starts], per_group(np.add, items[order], starts)
        self._pending, self._size = [], 0
        return self._counted


def per_group(operation: np.ufunc, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return operation.reduceat(values, starts) if starts.size else values[:0]


class Wholes:
    """Short texts to be looked for as a whole: in how many items each occurs, with its length and its first words."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._rows: dict[int, list[int]] = {}  # by hash

    def add(self, texts: Iterable[str]) -> None:
        """Add what one item is looked for by; texts of fewer words than the least are left out."""
        words, rows = word_sequences(), dict[int, list[int]]()
        for text in texts:
            length = words.count(text)
            if length >= self._least:
                prefix = words.hashes(text, self._least)[0]
                rows[int(words.hashes(text, length)[0])] = [0, length, int(prefix)]
        for value, row in rows.items():
            self._rows.setdefault(value, row)[0] += 1

    def columns(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The hashes, sorted, and items, length and prefix of each."""
        rows = np.array([[value, *row] for value, row in sorted(self._rows.items())], np.uint64).reshape(-1, 4)
        return rows[:, 0].copy(), {
            "items": rows[:, 1].astype(np.int64),
            "length": rows[:, 2].copy(),
            "prefix": rows[:, 3].copy(),
        }


@dataclass(frozen=True)
class EvaluationPart:
    """What one task reads of an evaluation set."""

    name: str
    number: int  # of the set, in the order of the files
    part: Part


def read_items(task: EvaluationPart, number: int, *, config: DecontaminateConfig, folder: Path) -> dict[str, Any]:
    """The sequences of one part of an evaluation set, with the number of its items that have each, into shuffles by group.

    A short item is looked for by all of its text in a row, and by its longest text alone: documents with a question have
    something else between it and its answer. Items of fewer words than the least say nothing, and are counted.
    """
    ignored, words = frozenset(config.ignored_fields), word_sequences()
    grams = {script: GramCounts() for script in ("words", "characters")}
    wholes = {script: Wholes(config.least(script)) for script in grams}
    counts = {"items": 0, "items_matched_whole": 0, "items_too_short": 0}
    examples: list[str] = []
    for record in items_of(task.part, config.template_items):
        texts = list(texts_of(record, ignored))
        text = "\n".join(texts)
        script, length = script_of(text), words.count(text)
        counts["items"] += 1
        if length >= config.length(script):
            grams[script].add(words.hashes(text, config.length(script)))
        elif length >= config.least(script):
            counts["items_matched_whole"] += 1
            wholes[script].add({text, max(texts, key=len)})
        else:
            counts["items_too_short"] += 1
            if text.strip() and len(examples) < EXAMPLES:
                examples.append(example(text))
    for script, counted in grams.items():
        hashes, items = counted.counted()
        _write(folder, Group(script, False), number, hashes, {"items": items}, task.number)
        hashes, columns = wholes[script].columns()
        _write(folder, Group(script, True), number, hashes, columns, task.number)
    return {"counts": {name: {task.name: value} for name, value in counts.items()}, "too_short": {task.name: examples}}


def example(text: str) -> str:
    """A text as notes show it."""
    return " ".join(text.split())[:EXAMPLE_CHARACTERS]


def _write(
    folder: Path, group: Group, number: int, hashes: np.ndarray, columns: dict[str, np.ndarray], of_set: int
) -> None:
    Shuffle(folder / group.name).write(number, hashes, {**columns, "set": np.full(hashes.size, of_set, np.int32)})


def merge_items(sets: list[str], number: int, *, config: DecontaminateConfig, folder: Path) -> dict[str, Any]:
    """The sequences of all parts that are no templates, sorted, each with the first set that has it, for `Matcher`."""
    templates = {}
    for group in GROUPS:
        shuffle = Shuffle(folder / group.name)
        partitions, tables, templates[group.name] = shuffle.partitions(), [], 0
        for partition in range(partitions):
            table = shuffle.read(partition, partitions)
            hashes = column(table, KEY)
            starts, _ = grouped(hashes)
            kept = per_group(np.add, column(table, "items"), starts) < config.template_items
            first = per_group(np.minimum, column(table, "set"), starts)
            templates[group.name] += int((~kept).sum())
            names = pa.DictionaryArray.from_arrays(pa.array(first[kept]), pa.array(sets, pa.string()))
            of_text = {name: column(table, name)[starts][kept] for name in ("length", "prefix") if group.whole}
            tables.append(pa.table({"hash": pa.array(hashes[starts][kept]), "set": names, **of_text}))
        write_table(folder / f"{group.name}.arrow", pa.concat_tables(tables))
    return {"template_ngrams": templates}
