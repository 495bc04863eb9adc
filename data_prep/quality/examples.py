"""Labelled documents on their way to the training: counted, drawn and split by hashes of their ids, their features on disk.

So which documents are drawn and held out depends neither on files nor on workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.core.partial_files import partial_path
from data_prep.curation.language import LANGUAGES, identify_language
from data_prep.documents.reading import Document
from data_prep.quality.model import Ngrams
from data_prep.quality.training import FEATURE, features_of
from recipe.base.files import replacing

DRAW_SEED, SPLIT_SEED = 20_260_104, 20_260_105
# Where the features of a document end, which class it has, and its place in the order of the training.
ROW = np.dtype([("key", "<u8"), ("stop", "<i8"), ("good", "?")])
CLASSES = ("bad", "good")


@dataclass(frozen=True)
class Labels:
    """The class of documents: what their field says, or which of two seed folders they are in.

    Args:
        field: true or false, 1 or 0, in each document.
        good_parts: numbers of the input's parts that hold good documents, the others bad ones; None: the field says it.
    """

    field: str
    languages: tuple[str, ...]
    good_parts: frozenset[int] | None = None

    def place(self, document: Document, number: int) -> tuple[str, str, str | None]:
        """Language and class of a document of a part, and the reason why it cannot be used."""
        label = document.get(self.field) if self.good_parts is None else number in self.good_parts
        language = str(document.get("lang"))
        if language not in LANGUAGES:
            language = identify_language(document["text"])[0]
        return language, CLASSES[label == 1], self._reason(label, language)

    def _reason(self, label: object, language: str) -> str | None:
        if label not in (False, True):
            return "no_label"
        return None if language in self.languages else "other_language"


def count_part(documents: Iterable[Document], number: int, *, labels: Labels) -> dict[str, Any]:
    """Documents of each language and class in one part of the input, and those that cannot be used by reason."""
    usable: dict[str, Counter[str]] = {}
    unusable = Counter[str]()
    for document in documents:
        language, name, reason = labels.place(document, number)
        if reason is None:
            usable.setdefault(language, Counter())[name] += 1
        else:
            unusable[reason] += 1
    return {"usable": usable, "unusable": unusable}


def draw_part(
    documents: Iterable[Document],
    number: int,
    *,
    labels: Labels,
    shares: dict[str, dict[str, float]],
    ngrams: Ngrams,
    folder: Path,
) -> dict[str, Any]:
    """Write the features of the documents that are drawn of one part, a file of each language."""
    writers = {language: _Writer(ngrams) for language in labels.languages}
    drawn: dict[str, Counter[str]] = {}
    for document in documents:
        language, name, reason = labels.place(document, number)
        if reason is None and _hash(document["id"], DRAW_SEED) < shares[language][name] * 2**64:
            writers[language].add(document, name == "good")
            drawn.setdefault(language, Counter())[name] += 1
    for language, writer in writers.items():
        writer.write(folder / language, number)
    return {"drawn": drawn}


def _hash(identity: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(identity.encode(), seed=seed)


class _Writer:
    """The rows and features of one part's documents in one language."""

    def __init__(self, ngrams: Ngrams):
        self._counter = ngrams.counter()
        self._rows: list[tuple[int, int, bool]] = []
        self._features = [np.empty(0, FEATURE)]
        self._size = 0

    def add(self, document: Document, good: bool) -> None:
        self._features.append(features_of(self._counter, document["text"]))
        self._size += self._features[-1].size
        self._rows.append((_hash(document["id"], SPLIT_SEED), self._size, good))

    def write(self, folder: Path, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("features", np.concatenate(self._features)), ("rows", np.array(self._rows, ROW))):
            path = folder / f"{number:05d}.{name}.npy"
            with replacing(path, partial_path(path)) as temporary, open(temporary, "wb") as file:
                np.save(file, array)


@dataclass(frozen=True)
class Examples:
    """The drawn documents of one language in the order of their hashes, which is that of the training."""

    keys: np.ndarray  # uint64 [documents]
    good: np.ndarray  # bool [documents]
    features: list[np.ndarray]  # FEATURE, mapped from disk

    @classmethod
    def read(cls, folder: Path) -> Examples:
        keys, good, features = [], [], list[np.ndarray]()
        for path in sorted(folder.glob("*.rows.npy")):
            rows = np.load(path)
            keys.append(rows["key"])
            good.append(rows["good"])
            if rows.size:
                mapped = np.load(path.with_name(path.name.replace(".rows.", ".features.")), mmap_mode="r")
                features += np.split(mapped, rows["stop"][:-1])
        order = np.argsort(all_keys := np.concatenate(keys), kind="stable")
        return cls(all_keys[order], np.concatenate(good)[order], [features[i] for i in order.tolist()])

    def between(self, start: float, stop: float) -> Examples:
        """Those whose hashes lie in a range of [0, 1]."""
        first, last = (int(np.searchsorted(self.keys / 2**64, bound)) for bound in (start, stop))
        return Examples(self.keys[first:last], self.good[first:last], self.features[first:last])

    def has_both_classes(self) -> bool:
        return bool(self.good.any() and not self.good.all())
