"""Text to token ids: fastokens, checked against `tokenizers` while it runs, which takes over where they differ.

Both read the same tokenizer.json. On the sample corpora fastokens gives the same ids for every document, in an
eighth of the time. Text that looks like a special token is encoded as text: documents may not end themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tasks are the parallelism
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")

CHECKED_CHARACTERS = 20_000  # of one document in each batch: a few percent of the time
SELF_TEST = (
    "The old ship, don't you see?  Two  blanks,\ttabs\n\n\nand 2026 lines. I'LL  \u00a0 caf\u00e9 e\u0301",
    "清晨，青石镇的船长看着潮水。Python 代码：\n    return x[1:]  # 注释 𠀀㐀 全角ＡＢＣ１２３",
    "mixed中文English混排123 ¿ña? 🙂👩\u200d👩\u200d👧 \u200b end <|endoftext|> العربية हिन्दी ไทย 한국어 カタカナ",
)


class EncoderMismatch(Exception):
    """The fast encoder gave other ids than the reference."""


class Encoder(Protocol):
    name: str

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one behind the other, uint32, and where each ends, int64 [len(texts)]."""


class ReferenceEncoder:
    """`tokenizers`, the definition of what is right."""

    name = "tokenizers"

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ends = np.cumsum([len(e.ids) for e in encoded], dtype=np.int64)
        return np.concatenate([np.asarray(e.ids, np.uint32) for e in encoded]), ends


class FastEncoder:
    """fastokens; the first document of every batch is also encoded by the reference.

    Raises:
        EncoderMismatch: from the constructor and from `encode`, where the two differ.
    """

    name = "fastokens"

    def __init__(self, folder: Path):
        import fastokens

        self._reference = ReferenceEncoder(folder)
        try:
            self._tokenizer = fastokens.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except ValueError as error:
            raise EncoderMismatch(f"fastokens does not read it: {error}") from None
        for text in SELF_TEST:
            self._check(text)

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False, True)
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")[1:].astype(np.int64)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self._check(texts[0][:CHECKED_CHARACTERS])
        return self._encode(texts)

    def _check(self, text: str) -> None:
        if not np.array_equal(self._encode([text])[0], self._reference.encode([text])[0]):
            raise EncoderMismatch(f"other ids for a text that starts with {text[:40]!r}")


@cache
def load_encoder(folder: Path) -> tuple[Encoder, str | None]:
    """The fast encoder, or the reference and why; loaded once per process."""
    try:
        return FastEncoder(folder), None
    except EncoderMismatch as error:
        return ReferenceEncoder(folder), str(error)
