"""The output folder of data_prep/tokenize_corpus.py as training and evaluation see it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json
from recipe.data.indexed import Shard

Split = Literal["train", "held_out"]
_OF_A_TOKENIZER = {"sha256", "vocab_size", "eod_id"}
_OF_A_SHARD = {"prefix", "split", "source", "tokens", "text_bytes", "sha256"}


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
        if not isinstance(self.manifest, dict) or self.manifest.get("stage") != "tokenize":
            raise UserError(f"{manifest_path} is not of tokenize_corpus.py; give the output folder of that job")
        try:
            self.tokenizer: dict[str, Any] = self.manifest["results"]["tokenizer"]
            shards = self.manifest["results"]["shards"]
            if not self.tokenizer.keys() >= _OF_A_TOKENIZER or not all(shard.keys() >= _OF_A_SHARD for shard in shards):
                raise KeyError
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{manifest_path} lacks what tokenize_corpus.py writes; restore it or tokenize again"
            ) from None

    def sizes(self, split: Split) -> dict[str, int]:
        """Tokens of each source that has some, by the manifest."""
        return {name: sum(entry["tokens"] for entry in entries) for name, entries in self._entries(split).items()}

    def sources(self, split: Split, names: Collection[str] | None = None) -> list[Source]:
        """The sources of a split, or those of these names; the shards of others need not be there."""
        entries = self._entries(split)
        return [self._source(name, shards) for name, shards in entries.items() if names is None or name in names]

    def _entries(self, split: Split) -> dict[str, list[dict[str, Any]]]:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for shard in self.manifest["results"]["shards"]:
            if shard["split"] == split and shard["tokens"]:
                by_name.setdefault(shard["source"], []).append(shard)
        return dict(sorted(by_name.items()))

    def _source(self, name: str, entries: list[dict[str, Any]]) -> Source:
        shards = tuple(Shard(self.path / entry["prefix"]) for entry in entries)
        for shard, entry in zip(shards, entries, strict=True):
            if shard.num_tokens != entry["tokens"]:
                raise UserError(
                    f"{shard.prefix}.bin holds {shard.num_tokens} tokens but the manifest says {entry['tokens']}; tokenize it again"
                )
            if not shard.verifiable:
                raise UserError(f"{shard.prefix}.sums is missing; restore it or tokenize again")
            if sha256(Path(f"{shard.prefix}.sums")) != entry["sha256"][".sums"]:
                raise UserError(
                    f"{shard.prefix}.sums is not the one that {self.path / 'manifest.json'} lists; restore the shard or "
                    "tokenize it again"
                )
        return Source(name, shards, sum(e["tokens"] for e in entries), sum(e["text_bytes"] for e in entries))


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    """Checksum, vocabulary size, end-of-document id and padding id (null without one) of a tokenizer folder.

    Raises:
        UserError: no tokenizer there, or one without an end-of-document (eos) token.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"tokenizer {folder} holds no tokenizer.json; give the output folder of train_tokenizer.py")
    tokenizer = load_json(path)
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = special_tokens(folder)
    eod_id, pad_id = (vocabulary.get(special.get(name)) for name in ("eos_token", "pad_token"))
    if eod_id is None:
        raise UserError(f"tokenizer {folder} names no eos_token in its vocabulary; documents could not be told apart")
    # A tokenizer that pads with its end-of-document token has no padding that could be told from it.
    pad_id = None if pad_id == eod_id else pad_id
    return {"sha256": sha256(path), "vocab_size": len(vocabulary), "eod_id": eod_id, "pad_id": pad_id}


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """What a tokenizer is, by content: `tokenizer_facts`, and its special tokens by their names."""
    added = folder / "added_tokens.json"
    more = {"added_tokens_sha256": sha256(added)} if added.exists() else {}
    return {**tokenizer_facts(folder), "special_tokens": special_tokens(folder), **more}


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens that a tokenizer folder names, such as eos_token, as text.

    As transformers 5 reads them: special_tokens_map.json, which older versions write, goes before tokenizer_config.json
    where this does not list the added tokens itself.
    """
    config = load_json(folder / "tokenizer_config.json")
    older = folder / "special_tokens_map.json"
    if older.exists() and "added_tokens_decoder" not in config:
        config = {**config, **load_json(older)}
    named = {name: _text(value) for name, value in config.items() if name.endswith("_token") and value is not None}
    lists = {name: config[name] for name in ("additional_special_tokens", "extra_special_tokens") if config.get(name)}
    texts = {name: _texts(value) for name, value in lists.items()}
    return {**{name: text for name, text in named.items() if isinstance(text, str)}, **texts}


def _text(token: Any) -> Any:
    """A special token's text: tokenizer_config.json has it as a string or as an object."""
    return token["content"] if isinstance(token, dict) else token


def _texts(tokens: Any) -> Any:
    return {k: _text(v) for k, v in tokens.items()} if isinstance(tokens, dict) else [_text(token) for token in tokens]


def check_tokenizer(tokens: TokenFolder, tokenizer: Path) -> None:
    """Refuse a tokenizer that is not the one that a folder's tokens were made with.

    Raises:
        UserError: another vocabulary, or another end of document or padding.
    """
    facts = tokenizer_facts(tokenizer)
    if facts["sha256"] != tokens.tokenizer["sha256"]:
        raise UserError(
            f"{tokens.path} was tokenized with another tokenizer than {tokenizer}; name the one it was made with"
        )
    for token, key in (("eos_token", "eod_id"), ("pad_token", "pad_id")):
        if facts[key] != tokens.tokenizer.get(key):
            raise UserError(
                f"the {token} of {tokenizer} has id {facts[key]}, but {tokens.path} was tokenized with "
                f"{tokens.tokenizer.get(key)}; restore tokenizer_config.json or tokenize again"
            )


def held_out_sources(folder: Path, tokenizer: Path) -> tuple[list[Source], int]:
    """The held-out sources of a folder, and the token that ends a document.

    Raises:
        UserError: there are none, or they were made with another tokenizer.
    """
    tokens = TokenFolder(folder)
    check_tokenizer(tokens, tokenizer)
    sources = tokens.sources("held_out")
    if not sources:
        raise UserError(f"{folder} has no held-out shards; tokenize with held_out above 0")
    return sources, tokens.tokenizer["eod_id"]
