"""A tokenizer as a folder that transformers 4.57 and 5 read with the ids of `tokenizers`, with which documents are encoded.

Both choose a class by `tokenizer_class`, and some classes (GPT2Tokenizer, Qwen2Tokenizer, LlamaTokenizer) put a pre-tokenizer of
their own in the place of the one in tokenizer.json: other ids than the model was trained on. So the configuration is written
anew. It names the class that takes tokenizer.json as it is, and the special tokens under names that both versions know.
tokenizer.json stays as it is, byte for byte: by its checksum a tokenizer is known.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.data.token_folder import check_named_tokens, special_tokens, tokenizer_facts, tokenizer_file

# Texts on which two readers of a tokenizer.json have to give the same ids.
SELF_TEST = (
    "The old ship, don't you see?  Two  blanks,\ttabs\n\n\nand 2026 lines. I'LL  \u00a0 caf\u00e9 e\u0301",
    "清晨，青石镇的船长看着潮水。Python 代码：\n    return x[1:]  # 注释 𠀀㐀 全角ＡＢＣ１２３",
    "mixed中文English混排123 ¿ña? 🙂👩\u200d👩\u200d👧 \u200b end <|endoftext|> العربية हिन्दी ไทย 한국어 カタカナ",
)
# What transformers calls special by itself; tokens of other names are among additional_special_tokens. 4.57 does not read the
# list extra_special_tokens, which 5 writes; both read this one.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ALWAYS_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


def write_tokenizer(
    tokenizer: Path, output: Path, *, model_max_length: int | None, chat_template: str | None = None
) -> None:
    """Copy a tokenizer folder's tokenizer.json to `output`, beside a configuration of our own making.

    Args:
        model_max_length: the longest text that the model takes, in tokens; None where no model is known.

    Raises:
        UserError: no tokenizer, or one without a configuration.
    """
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer_file(tokenizer), output / "tokenizer.json")
    special = special_tokens(tokenizer)
    write_tokenizer_config(output, special, model_max_length=model_max_length, chat_template=chat_template)


def write_tokenizer_config(
    folder: Path, special: Mapping[str, Any], *, model_max_length: int | None = None, chat_template: str | None = None
) -> None:
    """Write the tokenizer_config.json that belongs to a tokenizer.json, with these special tokens.

    Args:
        special: texts by name, such as {"eos_token": "</s>"}, and lists of more, as `special_tokens` has them.
    """
    named = {name: special[name] for name in NAMES if name in special}
    more = [token for name, value in special.items() if name not in NAMES for token in _texts(value)]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # A name that is missing would be taken from the padding that tokenizer.json may have saved.
        **dict.fromkeys(ALWAYS_NAMED),
        **named,
        "additional_special_tokens": [t for t in dict.fromkeys(more) if t not in named.values()],
        "clean_up_tokenization_spaces": False,
        # 4.57 would add token_type_ids, which a decoder's `generate` refuses.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(folder / "tokenizer_config.json", config)


def _texts(value: Any) -> Iterator[str]:
    """The tokens of one name: a text, a list, or texts by further names."""
    values = value.values() if isinstance(value, dict) else [value] if isinstance(value, str) else value
    yield from (token for token in values if isinstance(token, str))


def special_ids(tokenizer: Path) -> dict[str, int | None]:
    """Ids for a model's config.json: what ends documents in the shards is its eos.

    Raises:
        UserError: see `tokenizer_facts`.
    """
    facts, bos = tokenizer_facts(tokenizer), special_tokens(tokenizer).get("bos_token")
    vocabulary = _tokenizer(tokenizer).get_vocab() if bos is not None else {}
    return {"bos_token_id": vocabulary.get(bos), "eos_token_id": facts["eod_id"], "pad_token_id": facts["pad_id"]}


def load_tokenizer(tokenizer: Path) -> Any:
    """transformers' tokenizer of a folder, read the way that an export is read.

    Raises:
        UserError: transformers does not load it.
    """
    from transformers import AutoTokenizer

    with TemporaryDirectory(prefix="tokenizer") as folder:
        write_tokenizer(tokenizer, Path(folder), model_max_length=None)
        try:
            return AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # of whatever class its code raises
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"transformers does not load {tokenizer_file(tokenizer)}: {reason}; fetch or save it again"
            ) from None


def check_tokenizer_export(tokenizer: Path) -> None:
    """Refuse a tokenizer that transformers would read otherwise than it was read for the shards.

    Raises:
        UserError: says what differs.
    """
    check_named_tokens(tokenizer)
    facts, loaded, reference = tokenizer_facts(tokenizer), load_tokenizer(tokenizer), _tokenizer(tokenizer)
    path = tokenizer_file(tokenizer)
    if loaded.eos_token_id != facts["eod_id"]:
        raise UserError(
            f"transformers reads {loaded.eos_token_id} as the id of the eos_token of {tokenizer}, and the documents end with "
            f"{facts['eod_id']}; restore tokenizer_config.json and special_tokens_map.json, or tokenize again"
        )
    if loaded.get_vocab() != reference.get_vocab():
        raise UserError(
            f"transformers reads another vocabulary from {path} than tokenizers, with which the documents were encoded: "
            f"{_differing(loaded.get_vocab(), reference.get_vocab())}; save the tokenizer again with transformers, and tokenize again"
        )
    reference.no_truncation()
    reference.no_padding()
    tokens = [token.content for token in reference.get_added_tokens_decoder().values()]
    # Special tokens are text in a document, and themselves in a chat.
    for as_text, texts in ((True, SELF_TEST), (False, [f"a {' '.join(tokens)} b{''.join(tokens)}"])):
        reference.encode_special_tokens = as_text
        for text in texts:
            ids = loaded(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]
            if ids != reference.encode(text, add_special_tokens=False).ids:
                raise UserError(
                    f"transformers reads other ids from {path} than tokenizers, with which the documents were encoded, for a text "
                    f"that begins with {text[:20]!r}; save the tokenizer again with transformers, and tokenize again"
                )


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_file(folder)))


def _differing(one: dict[str, int], other: dict[str, int]) -> str:
    token = next(token for token in sorted({*one, *other}) if one.get(token) != other.get(token))
    return f"{token!r} is {one.get(token)} and {other.get(token)}"
