"""How a tokenizer splits text before BPE, and the name of that in llama.cpp, whose runtime has a list of patterns of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe.base.strict import load_json
from recipe.data.token_folder import tokenizer_file

# The pattern of cl100k_base (GPT-4), which Qwen has with single digits and GLM-4 and Llama 3 with up to three. Words keep one
# leading blank or mark; runs of blanks and line ends stay whole, for code. Han, kana and Hangul are letters, so runs of them
# stay whole too. Combining marks are none: without them in `letters`, as Qwen3.5 has them, the vowel signs of Hindi and Thai
# cut every word.
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
    r"| ?[^\s{inside}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"single": r"\p{N}", "triple": r"\p{N}{1,3}"}
_LETTERS = {"split": (r"\p{L}", r"\p{L}"), "join": (r"[\p{L}\p{M}]", r"\p{L}\p{M}")}


def split_pattern(digits: str, combining_marks: str = "split") -> str:
    """The regular expression of a way to treat digits (single, triple) and combining marks (split, join)."""
    letters, inside = _LETTERS[combining_marks]
    return _CL100K.format(digits=_DIGITS[digits], letters=letters, inside=inside)


# tokenizer.ggml.pre of the same pattern with merges applied one by one (src/llama-vocab.cpp); others of the same pattern, such
# as llama-bpe, take a word that is in the vocabulary whole, or put a bos token first.
LLAMA_CPP_NAMES = {
    split_pattern("single"): "qwen2",
    split_pattern("triple"): "chatglm-bpe",
    split_pattern("single", "join"): "qwen35",
}


def llama_cpp_name(tokenizer: Path) -> str | None:
    """What llama.cpp calls the way in which a tokenizer folder splits text; None where it has none for it."""
    content = load_json(tokenizer_file(tokenizer))
    model, split = content.get("model") or {}, content.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = split.get("pretokenizers", [split])
    plain = model.get("type") == "BPE" and not any(
        model.get(key) for key in ("ignore_merges", "byte_fallback", "dropout")
    )
    if (content.get("normalizer") or {"type": "NFC"})["type"] != "NFC" or not plain:
        return None
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return None
    if (
        steps[0]["behavior"] != "Isolated"
        or steps[0]["invert"]
        or steps[1]["add_prefix_space"]
        or steps[1]["use_regex"]
    ):
        return None
    return LLAMA_CPP_NAMES.get(steps[0]["pattern"].get("Regex", ""))


def composes(tokenizer: Path) -> bool:
    """Whether it composes Unicode (NFC) first, which llama.cpp does not do."""
    return load_json(tokenizer_file(tokenizer)).get("normalizer") is not None
