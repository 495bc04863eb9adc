"""What an export says of its tokenizer is read with the ids of the shards, whatever the folder of the run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.data.token_folder import special_tokens, tokenizer_facts
from recipe.huggingface.tokenizer_folder import SELF_TEST, check_tokenizer_export, special_ids, write_tokenizer

END, PAD = "<|endoftext|>", "<|pad|>"
LETTERS_OR_REST = r"\p{Han}|\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"  # as no class of transformers splits
TEXTS = [
    *SELF_TEST,
    *("the ship and the captain " * 9, "船长看着潮水，船长看着潮水。" * 9, "2026 2027 12345 x1y22z333 " * 9),
]


def tokenizer_of(**parts: Any) -> Tokenizer:
    """A byte-level BPE with a pattern of its own; parts, such as post_processor, are set on it."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LETTERS_OR_REST), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", END, PAD], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_truncation() -> Tokenizer:
    tokenizer = tokenizer_of()
    tokenizer.enable_truncation(5, stride=2)
    tokenizer.enable_padding(length=9, pad_token="[PAD]")  # which no vocabulary has
    return tokenizer


def with_added_tokens() -> Tokenizer:
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(
        [AddedToken("<think>"), AddedToken("<left>", lstrip=True), AddedToken("ship", single_word=True)]
    )
    tokenizer.add_special_tokens([AddedToken("<right>", rstrip=True), "<|im_start|>"])
    return tokenizer


def with_post_processor() -> Tokenizer:
    tokenizer = tokenizer_of()
    pair = [(END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{END} $A", f"{END} $A $B", pair)
    return tokenizer


CONFIG: dict[str, Any] = {"eos_token": END, "pad_token": PAD}
LIKE_QWEN = {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "bos_token": None, "unk_token": None}
LIKE_GLM = {"tokenizer_class": "PreTrainedTokenizer", "additional_special_tokens": [END, PAD], "padding_side": "left"}
CASES = {
    "plain": (tokenizer_of, {}),
    "truncation": (with_truncation, {}),
    "unigram": (unigram, {"unk_token": "<unk>", "tokenizer_class": "T5Tokenizer"}),
    "added": (with_added_tokens, {"extra_special_tokens": ["<|im_start|>", "<right>"]}),
    "by name": (with_added_tokens, {"extra_special_tokens": {"image_token": "<|im_start|>"}, "eoi_token": "<right>"}),
    "post_processor": (with_post_processor, {"bos_token": {"content": END, "lstrip": True}, "add_bos_token": True}),
    "nfc": (lambda: tokenizer_of(normalizer=normalizers.NFC(), post_processor=processors.ByteLevel()), {}),
    "gpt2": (tokenizer_of, {"tokenizer_class": "GPT2Tokenizer", "errors": "replace", "add_prefix_space": True}),
    "llama": (tokenizer_of, {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "bos_token": END}),
    "qwen": (with_added_tokens, {**LIKE_QWEN, "additional_special_tokens": ["<|im_start|>"]}),
    "glm": (tokenizer_of, {**LIKE_GLM, "local_files_only": True, "name_or_path": "/a", "backend": "tokenizers"}),
}


def folder_of(folder: Path, case: str) -> Path:
    make, config = CASES[case]
    folder.mkdir()
    make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def ids_in_shards(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_the_ids_of_the_shards(case, tmp_path):
    source = folder_of(tmp_path / "source", case)
    check_tokenizer_export(source)
    write_tokenizer(source, tmp_path / "export", model_max_length=128, chat_template="{{ messages }}")
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export")
    for text in (*TEXTS, f" <think> a <left> b <right> c ship{END} <|im_start|>{PAD}"):
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids_in_shards(source, text)
    assert len(loaded) == tokenizer_facts(source)["vocab_size"]
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == (END, PAD, 128)
    assert loaded.chat_template == "{{ messages }}"


def test_the_configuration_says_what_both_versions_of_transformers_know_and_no_more(tmp_path):
    for case, more in (("added", ["<|im_start|>", "<right>"]), ("by name", ["<right>", "<|im_start|>"]), ("glm", [])):
        source = folder_of(tmp_path / case, case)
        write_tokenizer(source, output := tmp_path / f"{case} out", model_max_length=None)
        assert load_json(output / "tokenizer_config.json") == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": END,
            "pad_token": PAD,
            "unk_token": None,
            "additional_special_tokens": more,  # 4.57 stops at a list of extra_special_tokens
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        assert sorted(path.name for path in output.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_a_trained_tokenizer_is_written_as_its_export_is(prepared, tmp_path):
    write_tokenizer(prepared.tokenizer, tmp_path, model_max_length=None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (prepared.tokenizer / name).read_bytes()
    assert special_tokens(tmp_path) == special_tokens(prepared.tokenizer)
    check_tokenizer_export(prepared.tokenizer)


def test_the_ids_of_special_tokens_are_those_of_the_shards(tmp_path):
    plain, with_bos = (folder_of(tmp_path / case, case) for case in ("plain", "post_processor"))
    assert special_ids(plain) == {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    assert special_ids(with_bos) == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "source", "added")
    config = load_json(source / "tokenizer_config.json")
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "mask_token": "<mask>"}))
    with pytest.raises(UserError, match=r"mask_token of tokenizer .* names '<mask>', which is not in"):
        check_tokenizer_export(source)
    (source / "tokenizer_config.json").write_text(json.dumps(config))

    right = AutoTokenizer.from_pretrained

    def changed(change):
        def from_pretrained(folder):
            tokenizer = right(folder)
            change(tokenizer)
            return tokenizer

        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)

    changed(lambda tokenizer: tokenizer.add_tokens("船长看"))
    with pytest.raises(UserError, match=r"another vocabulary from .*tokenizer.json.*: '船长看' is \d+ and None; save"):
        check_tokenizer_export(source)
    changed(lambda tokenizer: setattr(tokenizer, "eos_token", PAD))
    with pytest.raises(
        UserError, match=r"transformers reads 1 as the id of the eos_token of .* documents end with 0; "
    ):
        check_tokenizer_export(source)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", whole))
    with pytest.raises(UserError, match=r"other ids from .* for a text that begins with .The old ship"):
        check_tokenizer_export(source)
    changed(lambda tokenizer: 1 / 0)
    with pytest.raises(
        UserError, match=r"transformers does not load .*tokenizer\.json: division by zero; fetch or save"
    ):
        check_tokenizer_export(source)
