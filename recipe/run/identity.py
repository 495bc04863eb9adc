"""What a run is made of, by content: the model's shape, the tokenizer with its special tokens, the tokens.

Recorded at each start and in each checkpoint, and compared wherever one is loaded: a path may change, what lies under it
may not. Tokens are known by the checksums that their manifest lists, which the shards' blocks are verified against when
they are read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape
from recipe.data.token_folder import TokenFolder, tokenizer_identity

Identity = dict[str, Any]  # plain JSON: "model", "tokenizer", "data"

EVALUATION = "evaluation"  # the part that may change: other held-out tokens than the run's own
DIGITS = 12  # of a checksum, in a message
MOST_DIFFERENCES = 6  # in a message


def identity_of(
    shape: ModelShape, tokens: TokenFolder, tokenizer: Path, evaluated: TokenFolder | None = None
) -> Identity:
    """The identity of a run that trains this model on these tokens, and is evaluated on others where they are given."""
    identity = {
        "model": shape.model_dump(mode="json"),
        "tokenizer": tokenizer_identity(tokenizer),
        "data": data_identity(tokens),
    }
    return identity if evaluated is None else {**identity, EVALUATION: data_identity(evaluated)}


def data_identity(tokens: TokenFolder) -> dict[str, Any]:
    """A token folder: per split and source its size, and a digest of its shards' names, sizes and checksums."""
    by_source: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for shard in tokens.manifest["results"]["shards"]:
        by_source.setdefault(shard["split"], {}).setdefault(shard["source"], []).append(shard)
    facts: dict[str, Any] = {"eod_id": tokens.tokenizer["eod_id"], "pad_id": tokens.tokenizer.get("pad_id")}
    for split, sources in sorted(by_source.items()):
        facts[split] = {name: _source(shards) for name, shards in sorted(sources.items())}
    return facts


def _source(shards: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [(s["prefix"], s["tokens"], s["text_bytes"], s["sha256"]) for s in shards]
    return {
        "shards": len(shards),
        "tokens": sum(s["tokens"] for s in shards),
        "text_bytes": sum(s["text_bytes"] for s in shards),
        "sha256": hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest(),
    }


def differences(recorded: Identity, current: Identity) -> list[str]:
    """Each value that is not what was recorded, by its name; of a part that both have."""
    before, now = _leaves(recorded), _leaves(current)
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} is {_shown(now.get(name))}, was {_shown(before.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def check_identity(recorded: Identity, current: Identity, owner: object, remedy: str) -> None:
    """Refuse inputs that are not those of `owner`, a run or a checkpoint.

    Args:
        remedy: what to do about it.

    Raises:
        UserError: names what differs.
    """
    problems = differences({part: recorded[part] for part in current}, current)
    if problems:
        more = f" and {len(problems) - MOST_DIFFERENCES} more" if len(problems) > MOST_DIFFERENCES else ""
        raise UserError(
            f"{owner} was trained with other inputs: {'; '.join(problems[:MOST_DIFFERENCES])}{more}; {remedy}"
        )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        leaf: inner
        for key, child in value.items()
        for leaf, inner in _leaves(child, f"{name}.{key}" if name else key).items()
    }


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, str) and len(value) == 64:
        return value[:DIGITS]
    return f"{value:,}" if type(value) is int else repr(value)
