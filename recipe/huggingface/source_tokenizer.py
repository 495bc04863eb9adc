"""Whether the tokens that a run reads are those that the model it begins from has learned."""

from __future__ import annotations

from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.strict import load_json


def tokenizer_note(model: Path, tokenizer: Path) -> str | None:
    """How the run's tokenizer differs from that of the model's folder; None where it does not, or the folder has none."""
    theirs, ours = model / "tokenizer.json", tokenizer / "tokenizer.json"
    if not theirs.exists() or theirs.read_bytes() == ours.read_bytes():
        return None
    known, read = _ids(theirs), _ids(ours)
    other = sum(known.get(token) != number for token, number in read.items())
    if not other:
        return None
    return (
        f"{other:,} of {len(read):,} tokens of {tokenizer} have another id in {theirs} or none, so the rows of the embedding belong to "
        "other tokens; tokenize with the model's own tokenizer if that is not meant"
    )


def _ids(path: Path) -> dict[str, int]:
    """The id of each token, of a vocabulary by names (BPE, WordPiece) or in order (Unigram).

    Raises:
        UserError: not a tokenizer.json.
    """
    tokenizer = load_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        return {**vocabulary, **{added["content"]: added["id"] for added in tokenizer.get("added_tokens", [])}}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} has no vocabulary as the tokenizers library writes it; fetch it again") from None
