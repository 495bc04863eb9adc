"""Text to token ids: fastokens, checked against `tokenizers` while it runs, which takes over where they differ.

Both read the same tokenizer.json. On the sample corpora fastokens gives the same ids for every document, in an
eighth of the time. Text that looks like a special token is encoded as text: documents may not end themselves.

A tokenizer.json also holds what its last user set: truncation, padding, dropout. Documents are encoded whole, without
special tokens around them and the same at each run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol
from unicodedata import normalize

import numpy as np
import orjson

from data_prep.documents.reading import Document
from recipe.base.errors import UserError
from recipe.huggingface.tokenizer_folder import SELF_TEST

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tasks are the parallelism
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")

BATCH, BATCH_CHARACTERS = 256, 4_000_000  # documents encoded together
CHECKED_CHARACTERS = 20_000  # of one document in each batch: a few percent of the time
SCRIPTS = {
    "Latin letters": "letters of an alphabet", "Chinese characters": "清晨青石镇的船长", "kana": "ひらがなカタカナ",
    "Hangul": "한국어글자", "Cyrillic letters": "русские буквы", "Arabic letters": "العربية", "Devanagari": "हिन्दी", "Thai": "ไทย",
}  # fmt: skip


class EncoderMismatch(Exception):
    """The fast encoder gave other ids than the reference."""


class Encoder(Protocol):
    name: str

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one behind the other, uint32, and where each ends, int64 [len(texts)]."""


class ReferenceEncoder:
    """`tokenizers`, the definition of what is right.

    Raises:
        UserError: from the constructor, a tokenizer.json that `tokenizers` does not read, or that gives other
            tokens at each run; from `encode`, a text that it cannot encode; from `check`, ids that are read otherwise.
    """

    name = "tokenizers"

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # of no narrower class
            raise UserError(
                f"{self.path} is not read by the tokenizers library: {error}; fetch or save it again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        if dropout := getattr(self._tokenizer.model, "dropout", None):
            raise UserError(
                f"{self.path} sets dropout {dropout:g}, which gives a document other tokens at each run; set it null"
            )

    @property
    def reference(self) -> ReferenceEncoder:
        return self

    def _content(self) -> dict[str, Any]:
        return orjson.loads(self.path.read_bytes())

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, added ones too."""
        return self._tokenizer.get_vocab()

    @property
    def special_tokens(self) -> set[str]:
        """Added tokens: special ones, and others that are looked for before the model sees a text."""
        return {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}

    @cached_property
    def unknown_id(self) -> int | None:
        """The token that stands for text that the vocabulary cannot express; None without one."""
        model = self._content()["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self._tokenizer.token_to_id(token)

    def check(self) -> None:
        """Refuse what would go wrong later: a text that cannot be encoded, ids of added tokens that others read otherwise.

        Raises:
            UserError: see the class.
        """
        self.encode(SELF_TEST)
        for token in self._content().get("added_tokens") or []:
            actual = self._tokenizer.token_to_id(token["content"])
            if actual != token["id"]:
                raise UserError(
                    f"{self.path} gives {token['content']!r} the id {token['id']}, but tokenizers and transformers read it as "
                    f"{actual}: they number added tokens on from the vocabulary's count; list it with its id in model.vocab "
                    f"too to keep {token['id']}, or save the tokenizer again with transformers to take {actual}"
                )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # of no narrower class
            raise UserError(
                f"{self.path} cannot encode a document: {error}; give the model an unk_token that is in its vocabulary, or "
                "train one that has all bytes"
            ) from None
        ends = np.cumsum([len(e.ids) for e in encoded], dtype=np.int64)
        return np.concatenate([np.asarray(e.ids, np.uint32) for e in encoded]), ends

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def is_piece(self, number: int) -> bool:
        """Whether the model itself gives this token for the token's text, which marking it special does not prevent."""
        from tokenizers import Tokenizer

        content = self._content()
        for token in content.get("added_tokens") or []:
            token["special"] = True
        marked = Tokenizer.from_str(orjson.dumps(content).decode())
        marked.no_truncation()
        marked.encode_special_tokens = True
        text = marked.id_to_token(number)
        return any(number in marked.encode(t, add_special_tokens=False).ids for t in (text, f"a {text} b", f"a{text}b"))

    def lost_scripts(self) -> list[str]:
        """Of `SCRIPTS` those most of whose letters give no token at all, not even one for what is unknown."""
        lost = []
        for name, text in SCRIPTS.items():
            ids = self.encode([text])[0]
            letters = sum(map(str.isalpha, self.decode(ids)))
            if 2 * letters < sum(map(str.isalpha, text)) and not (ids == self.unknown_id).any():
                lost.append(name)
        return lost

    def keeps(self, text: str, ids: np.ndarray) -> bool:
        """Whether a text's ids decode to it, but for Unicode composition and blanks at its ends."""
        return normalize("NFC", self.decode(ids)).strip() == normalize("NFC", text).strip()


class FastEncoder:
    """fastokens; the first document of every batch is also encoded by the reference.

    Raises:
        EncoderMismatch: from the constructor and from `encode`, where the two differ.
    """

    name = "fastokens"

    def __init__(self, folder: Path):
        import fastokens

        self.reference = ReferenceEncoder(folder)
        try:
            self._tokenizer = fastokens.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except ValueError as error:
            raise EncoderMismatch(f"fastokens does not read this tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for text in SELF_TEST:
            self._check(text)

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False, True)
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")[1:].astype(np.int64)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        self._check(texts[0][:CHECKED_CHARACTERS])
        return self._encode(texts)

    def _check(self, text: str) -> None:
        if not np.array_equal(self._encode([text])[0], self.reference.encode([text])[0]):
            raise EncoderMismatch(f"other ids for a text that starts with {text[:40]!r}")


@cache
def load_encoder(folder: Path) -> tuple[FastEncoder | ReferenceEncoder, str | None]:
    """The fast encoder, or the reference and why; loaded once per process."""
    try:
        return FastEncoder(folder), None
    except EncoderMismatch as error:
        return ReferenceEncoder(folder), str(error)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents to encode together: `BATCH` of them, or as many as have `BATCH_CHARACTERS`."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document["text"])
        if len(batch) == BATCH or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
