"""The output folder of data_prep/tokenize_corpus.py as training and evaluation see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json
from recipe.data.indexed import Shard

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Source:
    """The shards of one source (a language, or a language and origin) in one split."""

    name: str
    shards: tuple[Shard, ...]
    num_tokens: int
    text_bytes: int  # UTF-8 bytes of the documents' text, the denominator of bits per byte


class TokenFolder:
    """Manifest and shards; sizes are checked when a shard is opened.

    Raises:
        UserError: no manifest, a foreign one, or shards that do not match it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        manifest_path = self.path / "manifest.json"
        if not manifest_path.exists():
            raise UserError(
                f"{self.path} has no manifest.json; give the output folder of a finished tokenize_corpus.py"
            )
        self.manifest: dict[str, Any] = load_json(manifest_path)
        if self.manifest.get("stage") != "tokenize":
            raise UserError(f"{manifest_path} is of stage '{self.manifest.get('stage')}', not of tokenize_corpus.py")
        self.tokenizer: dict[str, Any] = self.manifest["results"]["tokenizer"]

    def sources(self, split: Split) -> list[Source]:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for shard in self.manifest["results"]["shards"]:
            if shard["split"] == split and shard["tokens"]:
                by_name.setdefault(shard["source"], []).append(shard)
        return [self._source(name, entries) for name, entries in sorted(by_name.items())]

    def _source(self, name: str, entries: list[dict[str, Any]]) -> Source:
        shards = tuple(Shard(self.path / entry["prefix"]) for entry in entries)
        for shard, entry in zip(shards, entries, strict=True):
            if shard.num_tokens != entry["tokens"]:
                raise UserError(
                    f"{shard.prefix}.bin holds {shard.num_tokens} tokens but the manifest says {entry['tokens']}; tokenize it again"
                )
            if not shard.verifiable:
                raise UserError(f"{shard.prefix}.sums is missing; restore it or tokenize again")
        return Source(name, shards, sum(e["tokens"] for e in entries), sum(e["text_bytes"] for e in entries))


def held_out_sources(folder: Path, tokenizer: Path) -> tuple[list[Source], int]:
    """The held-out sources of a folder, and the token that ends a document.

    Raises:
        UserError: there are none, or they were made with another tokenizer.
    """
    tokens = TokenFolder(folder)
    if sha256(tokenizer / "tokenizer.json") != tokens.tokenizer["sha256"]:
        raise UserError(
            f"{folder} was tokenized with another tokenizer than {tokenizer}; give tokens made with that one"
        )
    sources = tokens.sources("held_out")
    if not sources:
        raise UserError(f"{folder} has no held-out shards; tokenize with held_out above 0")
    return sources, tokens.tokenizer["eod_id"]
