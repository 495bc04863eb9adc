"""A trained quality model: one linear classifier per language over hashed n-grams, in a file that is checked when read.

The score of a text is `sigmoid(bias + sum of weight * sqrt(share of the text's n-grams))` over the buckets of its n-grams, from
0 to 1. A model of two languages takes 2 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from data_prep.core.partial_files import partial_path
from data_prep.curation.characters import native
from recipe.base.errors import UserError
from recipe.base.files import replacing
from recipe.base.strict import Section

FILE_NAME = "quality.model"
MAGIC, VERSION = b"QUALITY\0", 1
_HEADER = struct.Struct("<8sII")  # magic, version, bytes of JSON that follow; then the weights, then SHA-256 of it all
MOST_SYMBOLS = 7  # of an n-gram, native/ngrams.hpp
_WEIGHT = np.dtype("<f4")


class Ngrams(Section):
    """Which n-grams are weighed, shortest and longest, and in how many buckets they are hashed: 2 ** bits."""

    characters: tuple[int, int]
    words: tuple[int, int]
    bits: int = Field(ge=10, le=24)

    def problems(self) -> list[str]:
        return [
            f"ngrams.{name} is {list(orders)}: give the shortest and the longest n-gram, 1 to {MOST_SYMBOLS}"
            for name, orders in (("characters", self.characters), ("words", self.words))
            if not 1 <= orders[0] <= orders[1] <= MOST_SYMBOLS
        ]

    def counter(self) -> native.NgramCounter:
        return native.NgramCounter(self.characters, self.words, self.bits)


@dataclass(frozen=True)
class Classifier:
    """The model of one language; texts that score `threshold` or more are good."""

    weights: np.ndarray  # float32 [2 ** bits]
    bias: float
    threshold: float


class QualityModel:
    """Scores texts. Classifiers are by language."""

    def __init__(self, ngrams: Ngrams, classifiers: dict[str, Classifier]):
        self.ngrams, self.classifiers = ngrams, classifiers
        self._counter = ngrams.counter()

    def score(self, text: str, language: str) -> float:
        """From 0, as the bad documents of the training, to 1, as the good ones."""
        classifier = self.classifiers[language]
        return sigmoid(classifier.bias + self._counter.weigh(text, classifier.weights))

    def write(self, path: Path) -> None:
        languages = {
            name: {"bias": classifier.bias, "threshold": classifier.threshold}
            for name, classifier in sorted(self.classifiers.items())
        }
        header = json.dumps({"ngrams": self.ngrams.model_dump(), "languages": languages}).encode()
        weights = [self.classifiers[name].weights.astype(_WEIGHT).tobytes() for name in languages]
        content = b"".join([_HEADER.pack(MAGIC, VERSION, len(header)), header, *weights])
        with replacing(path, partial_path(path)) as temporary:
            temporary.write_bytes(content + hashlib.sha256(content).digest())

    @classmethod
    def read(cls, folder: Path) -> QualityModel:
        """The model in the output folder of train_quality.py.

        Raises:
            UserError: there is none, or it is not what was written.
        """
        path = model_file(folder)
        content, digest = (whole := path.read_bytes())[:-32], whole[-32:]
        if len(content) < _HEADER.size or not content.startswith(MAGIC):
            raise UserError(f"{path} is no quality model; give the output folder of data_prep/train_quality.py")
        _, version, size = _HEADER.unpack_from(content)
        if version != VERSION:
            raise UserError(f"{path} has version {version} of the format, not {VERSION}; train the model again")
        if hashlib.sha256(content).digest() != digest:
            raise UserError(f"{path} is damaged; restore it or train the model again")
        header = json.loads(content[_HEADER.size : _HEADER.size + size])
        ngrams = Ngrams(**header["ngrams"])
        names = header["languages"]
        weights = np.frombuffer(content, _WEIGHT, offset=_HEADER.size + size).reshape(len(names), 1 << ngrams.bits)
        return cls(ngrams, {name: Classifier(weights[i], **names[name]) for i, name in enumerate(names)})


def model_file(folder: Path) -> Path:
    """Raises UserError where the folder holds no finished model."""
    path = folder / FILE_NAME
    if not (folder / "manifest.json").is_file() or not path.is_file():
        raise UserError(
            f"{folder} holds no quality model; give the output folder of a finished data_prep/train_quality.py"
        )
    return path


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -500.0), 500.0)))
