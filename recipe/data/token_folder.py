"""The output folder of data_prep/tokenize_corpus.py as training and evaluation see it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json
from recipe.data.indexed import LARGEST_ID, Shard, largest_id, token_dtype

Split = Literal["train", "held_out"]
TOKEN_STAGES = ("tokenize", "import_shards", "pack_sequences")  # jobs that write such a folder
_OF_A_TOKENIZER = {"sha256", "vocab_size", "eod_id"}
# Vocabularies that `tokenizers` does not read, and transformers may convert: SentencePiece, WordPiece, BPE, tiktoken.
OTHER_VOCABULARIES = ("*.model", "vocab.txt", "vocab.json", "*.tiktoken", "tekken.json")
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
        if not isinstance(self.manifest, dict) or self.manifest.get("stage") not in TOKEN_STAGES:
            raise UserError(
                f"{manifest_path} is not of tokenize_corpus.py, import_shards.py or pack_sequences.py; give the output folder of "
                "such a job"
            )
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


def packed_otherwise(tokens: TokenFolder, seq_length: int) -> str:
    """A sentence for a run with another sequence length than a folder was packed for; empty where nothing is to be told."""
    packed = (tokens.manifest["results"].get("packing") or {}).get("seq_length")
    if packed in (None, seq_length):
        return ""
    return (
        f"{tokens.path} was packed for sequences of {packed:,} tokens, and data.seq_length is {seq_length:,}: documents are "
        "cut that could be whole; pack it with the run's seq_length (data_prep/pack_sequences.py)"
    )


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    """Checksum, vocabulary size, end-of-document id and padding id (null without one) of a tokenizer folder.

    The vocabulary size is the largest id and one, which is what a model needs and what a shard's dtype follows: where ids
    have holes, it is more than the tokens.

    Raises:
        UserError: no tokenizer there, one that cannot be read, or one without an end-of-document (eos) token.
    """
    path = tokenizer_file(folder)
    ids = _token_ids(path)
    special = special_tokens(folder)
    _check_texts(folder)
    if "eos_token" not in special:
        raise UserError(
            f"tokenizer {folder} names no eos_token in its vocabulary; documents could not be told apart: write "
            f"{_eos_elsewhere(folder, ids)} in tokenizer_config.json"
        )
    eod_id, pad_id = (_special_id(folder, name, special, ids) for name in ("eos_token", "pad_token"))
    if sum(number == eod_id for number in ids.values()) > 1:
        raise UserError(
            f"{path} gives the id {eod_id} of its eos_token to another token too; give each an id of its own"
        )
    # A tokenizer that pads with its end-of-document token has no padding that could be told from it.
    pad_id = None if pad_id == eod_id else pad_id
    return {"sha256": sha256(path), "vocab_size": max(ids.values()) + 1, "eod_id": eod_id, "pad_id": pad_id}


def vocabulary_end(folder: Path) -> int:
    """One more than the largest id of a tokenizer folder: what a model's vocabulary must reach."""
    return max(_token_ids(tokenizer_file(folder)).values()) + 1


def check_vocabulary(id_end: int, vocab_size: int) -> None:
    """Refuse a model without a row for each of a tokenizer's ids.

    Args:
        id_end: one more than the largest id, as `tokenizer_facts` has it under vocab_size.
        vocab_size: the model's.

    Raises:
        UserError: the model is too small.
    """
    if id_end > vocab_size:
        raise UserError(
            f"the tokenizer has {id_end:,} tokens but the model's vocab_size is {vocab_size:,}, which its largest id, "
            f"{id_end - 1:,}, must be below; take the tokenizer that is the model's own, train a smaller one, or choose "
            "another model"
        )


def _check_texts(folder: Path) -> None:
    """Refuse an end of document or a padding that is named, and not by a text."""
    for name, value in _configured(folder).items():
        if name in ("eos_token", "pad_token") and value is not None and not isinstance(_text(value), str):
            raise UserError(
                f"tokenizer {folder} names no {name} in its vocabulary: the value {json.dumps(value)} of {name} must be text, "
                'such as "</s>"; write the token itself in tokenizer_config.json'
            )


def check_named_tokens(folder: Path) -> None:
    """Refuse tokens that the folder's configuration names and tokenizer.json lacks, whatever kind they are.

    transformers numbers such tokens on from the vocabulary, so its tokenizer would have ids that no model was made for.

    Raises:
        UserError: names the first.
    """
    ids = _token_ids(tokenizer_file(folder))
    for name, token in _named_tokens(folder):
        if token not in ids:
            raise UserError(
                f"{name} of tokenizer {folder} names {token!r}, which is not in tokenizer.json, and transformers gives it an id "
                "beyond the vocabulary; remove the name, add the token to added_tokens of tokenizer.json, or write it there: "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER) of transformers"
            )


def _named_tokens(folder: Path) -> list[tuple[str, str]]:
    """Tokens that transformers adds to those of tokenizer.json, each with what names it."""
    config, added = _mapping(folder / "tokenizer_config.json"), folder / "added_tokens.json"
    listed = {"added_tokens_decoder": _texts(config.get("added_tokens_decoder") or {})}
    if not listed["added_tokens_decoder"] and added.exists():  # which older versions write, and transformers then reads
        listed["added_tokens.json"] = list(_mapping(added))
    listed.update(special_tokens(folder))
    listed["model_specific_special_tokens"] = _texts(config.get("model_specific_special_tokens") or {})
    values = {name: found.values() if isinstance(found, dict) else found for name, found in listed.items()}
    lists = {name: [found] if isinstance(found, str) else found or [] for name, found in values.items()}
    return [(name, token) for name, tokens in lists.items() for token in tokens if isinstance(token, str)]


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer.json of a tokenizer folder.

    Raises:
        UserError: it has none; says how to make one of another vocabulary.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return path
    if folder.is_file():
        raise UserError(f"tokenizer {folder} is a file; give the folder that it is in")
    message = f"tokenizer {folder} holds no tokenizer.json; give the output folder of train_tokenizer.py"
    others = [other.name for pattern in OTHER_VOCABULARIES for other in sorted(folder.glob(pattern))]
    if others:
        message += (
            f", or convert its {others[0]}: AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER) of "
            "transformers writes tokenizer.json"
        )
    raise UserError(message)


def _token_ids(path: Path) -> dict[str, int]:
    """The id of each token in a tokenizer.json, of whatever model: a list's tokens (Unigram) have their places as ids."""
    try:
        content = load_json(path)
    except UserError as error:  # cut, empty, or a page that says that it was not found
        raise UserError(f"{error}; fetch it again") from None
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):
            ids = {token: number for number, (token, _score) in enumerate(vocabulary)}
        else:
            ids = dict(vocabulary)
        for token in content["added_tokens"]:  # transformers does not read a file without the list
            ids[token["content"]] = token["id"]
        if not vocabulary or not all(type(i) is int and 0 <= i <= LARGEST_ID for i in ids.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} lacks what the tokenizers library writes: model.vocab with tokens, a list added_tokens (maybe []), ids from 0 to "
            f"{LARGEST_ID:,}; fetch it again, or save it again with transformers"
        ) from None
    return ids


def _special_id(folder: Path, name: str, special: dict[str, Any], ids: dict[str, int]) -> int | None:
    if name not in special:
        return None
    if special[name] not in ids:
        raise UserError(
            f"the {name} {special[name]!r} of tokenizer {folder} is not in the vocabulary of tokenizer.json; name a token "
            "that is, or add this one with tokenizer.add_tokens and save_pretrained of transformers"
        )
    return ids[special[name]]


def _eos_elsewhere(folder: Path, ids: dict[str, int]) -> str:
    """The line for tokenizer_config.json that says what a model's own files say about its end-of-document token."""
    for name in ("generation_config.json", "config.json"):
        values = load_json(folder / name) if (folder / name).is_file() else {}
        number = values.get("eos_token_id") if isinstance(values, dict) else None
        number = number[0] if isinstance(number, list) and number else number
        token = next((token for token, i in ids.items() if i == number), None)
        if token is not None:
            return f"{json.dumps({'eos_token': token}, ensure_ascii=False)}, id {number} of {name},"
    return '{"eos_token": "..."}'


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """What a tokenizer is, by content: `tokenizer_facts`, and its special tokens by their names."""
    added = folder / "added_tokens.json"
    more = {"added_tokens_sha256": sha256(added)} if added.exists() else {}
    return {**tokenizer_facts(folder), "special_tokens": special_tokens(folder), **more}


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens that a tokenizer folder names, such as eos_token, as text."""
    config = _configured(folder)
    named = {name: _text(value) for name, value in config.items() if name.endswith("_token") and value is not None}
    lists = {name: config[name] for name in ("additional_special_tokens", "extra_special_tokens") if config.get(name)}
    texts = {name: _texts(value) for name, value in lists.items()}
    return {**{name: text for name, text in named.items() if isinstance(text, str)}, **texts}


def _configured(folder: Path) -> dict[str, Any]:
    """What a tokenizer folder says besides its tokenizer.json.

    As transformers 5 reads it: special_tokens_map.json, which older versions write, goes before tokenizer_config.json
    where this does not list the added tokens itself.
    """
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    if not path.exists() and not older.exists():
        raise UserError(
            f"tokenizer {folder} holds no tokenizer_config.json; write one that names the token that ends documents, such as "
            '{"eos_token": "</s>"}'
        )
    config = _mapping(path)
    if "added_tokens_decoder" not in config:
        config = {**config, **_mapping(older)}
    return config


def _mapping(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; {} without the file."""
    values = load_json(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again, or save the tokenizer again with transformers")
    return values


def _text(token: Any) -> Any:
    """A special token's text: tokenizer_config.json has it as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _texts(tokens: Any) -> Any:
    if isinstance(tokens, dict):
        return {k: _text(v) for k, v in tokens.items()}
    return [_text(token) for token in tokens] if isinstance(tokens, list) else _text(tokens)


def check_tokenizer(tokens: TokenFolder, tokenizer: Path) -> dict[str, Any]:
    """Refuse a tokenizer that is not the one that a folder's tokens were made with.

    Returns:
        the tokenizer's facts, see `tokenizer_facts`.

    Raises:
        UserError: another vocabulary, or another end of document or padding, or shards that cannot hold its ids.
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
    # An older version counted the tokens to choose a dtype, and wrote ids beyond 65,535 without their upper bits.
    if facts["vocab_size"] - 1 > largest_id(token_dtype(tokens.tokenizer["vocab_size"])):
        raise UserError(
            f"the ids of {tokenizer} go to {facts['vocab_size'] - 1:,}, more than the shards of {tokens.path} can hold, which "
            "an older version wrote; tokenize again"
        )
    return facts


def held_out_sources(folder: Path, tokenizer: Path) -> tuple[list[Source], int]:
    """The held-out sources of a folder, and the token that ends a document.

    Raises:
        UserError: there are none, or they were made with another tokenizer.
    """
    tokens = TokenFolder(folder)
    check_tokenizer(tokens, tokenizer)
    sources = tokens.sources("held_out")
    if not sources:
        raise UserError(f"{folder} has no held-out shards; tokenize with a larger held_out, or more documents")
    return sources, tokens.tokenizer["eod_id"]
