"""What a tokenizer folder says of itself: ids with holes, vocabularies of all models, and sentences for the rest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep.tokenize_corpus import main as tokenize
from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.data.token_folder import TokenFolder, check_named_tokens, check_tokenizer, special_tokens, tokenizer_facts

WORDS = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1, "</s>": 2}}


def folder_of(folder: Path, model: Any = None, config: Any = None, **more: Any) -> Path:
    """A tokenizer folder; `config` {"eos_token": "</s>"} where none is given."""
    folder.mkdir(exist_ok=True)
    content = {"version": "1.0", "model": WORDS if model is None else model, "added_tokens": [], **more}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} if config is None else config))
    return folder


def added(content: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.5]]}
WORD_PIECE = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
    "vocab": {"[UNK]": 0, "a": 1, "</s>": 2, "##b": 5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "added_tokens", "eod_id", "vocab_size"),
    [
        (WORDS, [], 2, 3),
        (UNIGRAM, [added("</s>", 1)], 1, 3),
        (WORD_PIECE, [], 2, 6),  # a hole
        ({**WORDS, "vocab": {"a": 0, "b": 1, "</s>": 70_000}}, [added("</s>", 70_000)], 70_000, 70_001),
        ({**WORDS, "vocab": {"a": 0, "b": 1}}, [added("</s>", 2)], 2, 3),
    ],
)
def test_the_vocabulary_is_counted_by_its_largest_id(model, added_tokens, eod_id, vocab_size, tmp_path):
    facts = tokenizer_facts(folder_of(tmp_path, model, added_tokens=added_tokens))
    assert (facts["eod_id"], facts["vocab_size"], facts["pad_id"]) == (eod_id, vocab_size, None)
    vocabulary = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    assert (vocabulary["</s>"], max(vocabulary.values()) + 1) == (eod_id, vocab_size)


def test_a_tokenizer_without_a_list_of_added_tokens_is_refused(tmp_path):
    content = load_json(folder_of(tmp_path, added_tokens=None) / "tokenizer.json")
    for changed in (content, {key: value for key, value in content.items() if key != "added_tokens"}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"a list added_tokens \(maybe \[\]\)"):
            tokenizer_facts(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": null}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {}}}'])
def test_a_tokenizer_without_a_vocabulary_is_refused(text, tmp_path):
    (folder_of(tmp_path) / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json lacks what the tokenizers library writes"):
        tokenizer_facts(tmp_path)


def test_a_vocabulary_of_added_tokens_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lacks what the tokenizers library writes: model\.vocab with tokens"):
        tokenizer_facts(folder_of(tmp_path, {**WORDS, "vocab": {}}, added_tokens=[added("</s>", 0)]))


@pytest.mark.parametrize("cut", [0, 1, 60])
def test_a_tokenizer_that_was_not_fetched_whole_is_to_be_fetched_again(cut, tmp_path):
    path = folder_of(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text()[:cut])
    with pytest.raises(UserError, match=r"tokenizer\.json is not valid: .*; fetch it again"):
        tokenizer_facts(tmp_path)


@pytest.mark.parametrize("value", [7, True, ["</s>"], {"text": "</s>"}, {"content": 2}])
@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_an_end_or_padding_that_is_no_text_is_named_with_its_value(name, value, tmp_path):
    with pytest.raises(UserError, match=f"the value {re.escape(json.dumps(value))} of {name} must be text"):
        tokenizer_facts(folder_of(tmp_path, config={"eos_token": "</s>", name: value}))


@pytest.mark.parametrize("number", ["2", -1, 2.0, True, None, 2**31])
def test_an_id_that_is_none_is_refused(number, tmp_path):
    with pytest.raises(UserError, match="ids from 0 to 2,147,483,647"):
        tokenizer_facts(folder_of(tmp_path, {**WORDS, "vocab": {"a": 0, "</s>": number}}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, 'names no eos_token in its vocabulary; .* write {"eos_token": "..."} in tokenizer_config.json'),
        ({"eos_token": None}, "names no eos_token"),
        ({"eos_token": 7}, "names no eos_token"),
        ({"eos_token": {"text": "</s>"}}, "names no eos_token"),
        ({"eos_token": "<|end|>"}, r"the eos_token '<\|end\|>' of tokenizer .* is not in the vocabulary"),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, "the pad_token '<pad>' of tokenizer .* is not in the vocabulary"),
        ([], r"tokenizer_config\.json holds no JSON object"),
    ],
)
def test_special_tokens_that_cannot_be_used_are_named(config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tokenizer_facts(folder_of(tmp_path, config=config))


@pytest.mark.parametrize("eos", [2, [2, 1]])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_of_document_that_only_the_model_names_is_told(eos, name, tmp_path):
    (folder_of(tmp_path, config={}) / name).write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(UserError, match=f'write {{"eos_token": "</s>"}}, id 2 of {name}, in tokenizer_config.json'):
        tokenizer_facts(tmp_path)


def test_a_tokenizer_config_that_is_missing_or_malformed_is_named(tmp_path):
    path = folder_of(tmp_path) / "tokenizer_config.json"
    path.unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer_config\.json; write one that names the token"):
        tokenizer_facts(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert tokenizer_facts(tmp_path)["eod_id"] == AutoTokenizer.from_pretrained(tmp_path).eos_token_id == 2
    path.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not valid"):
        tokenizer_facts(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "qwen.tiktoken", "tekken.json"]
)
def test_a_vocabulary_of_another_form_is_to_be_converted(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=f"holds no tokenizer.json; .* convert its {name}: AutoTokenizer.from_pretrained"
    ):
        tokenizer_facts(tmp_path)


def test_an_end_of_document_that_shares_its_id_is_refused(tmp_path):
    with pytest.raises(UserError, match="gives the id 1 of its eos_token to another token too"):
        tokenizer_facts(folder_of(tmp_path, {**WORDS, "vocab": {"a": 0, "b": 1, "</s>": 1}}))


def test_lists_of_special_tokens_may_have_any_form(tmp_path):
    more = {"additional_special_tokens": ["a", {"content": "b"}], "extra_special_tokens": {"x": {"content": "a"}}}
    assert special_tokens(folder_of(tmp_path, config={"eos_token": "</s>", **more})) == {
        "eos_token": "</s>", "additional_special_tokens": ["a", "b"], "extra_special_tokens": {"x": "a"},
    }  # fmt: skip


NEW = {**added("<x>", 7), "__type": "AddedToken"}
END = {"2": added("</s>", 2)}


@pytest.mark.parametrize(
    ("config", "files", "named_by"),
    [
        ({"bos_token": "<x>"}, {}, "bos_token"),
        ({"unk_token": NEW}, {}, "unk_token"),
        ({"mask_token": "<x>"}, {}, "mask_token"),
        ({"additional_special_tokens": ["a", "<x>"]}, {}, "additional_special_tokens"),
        ({"extra_special_tokens": {"image": "<x>"}}, {}, "extra_special_tokens"),
        ({"model_specific_special_tokens": {"image_token": "<x>"}}, {}, "model_specific_special_tokens"),
        ({"added_tokens_decoder": {**END, "7": NEW}}, {}, "added_tokens_decoder"),
        ({}, {"added_tokens.json": {"<x>": 9}}, "added_tokens.json"),
        ({}, {"special_tokens_map.json": {"bos_token": "<x>"}}, "bos_token"),
        ({"bos_token": None, "unk_token": "a", "additional_special_tokens": ["b"], "add_bos_token": True}, {}, None),
        ({"added_tokens_decoder": END}, {"added_tokens.json": {"<x>": 9}}, None),  # which is not read beside the other
        ({"added_tokens_decoder": END}, {"special_tokens_map.json": {"bos_token": "<x>"}}, None),
    ],
)
def test_a_token_that_transformers_would_number_beyond_the_vocabulary_is_named(config, files, named_by, tmp_path):
    folder_of(tmp_path, config={"eos_token": "</s>", **config}, added_tokens=[added("</s>", 2)])
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokens = AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    if named_by is None:
        check_named_tokens(tmp_path)
        assert "<x>" not in tokens
        return
    assert tokens["<x>"] == tokenizer_facts(tmp_path)["vocab_size"]
    with pytest.raises(UserError, match=f"{named_by} of tokenizer .* names '<x>', which is not in tokenizer.json"):
        check_named_tokens(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")  # what the message says
    check_named_tokens(tmp_path / "new")


def far_end(prepared, folder: Path) -> Path:
    """The prepared tokenizer with an end of document at 70,000, in the vocabulary too, where `tokenizers` looks first."""
    shutil.copytree(prepared.tokenizer, folder)
    content = load_json(folder / "tokenizer.json")
    content["model"]["vocab"]["<|end|>"] = 70_000
    content["added_tokens"].append(added("<|end|>", 70_000))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {**load_json(folder / "tokenizer_config.json"), "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ids_beyond_the_count_of_tokens_are_written_as_they_are_and_old_shards_refused(prepared, tmp_path):
    tokenizer, output = far_end(prepared, tmp_path / "tokenizer"), tmp_path / "tokens"
    words = ["--input", prepared.deduped, "--tokenizer", tokenizer, "--output", output, "--workers", 1]
    assert tokenize([str(w) for w in words]) == 0
    tokens = TokenFolder(output)
    ends = {int(d[-1]) for source in tokens.sources("train") for shard in source.shards for d in shard.documents()}
    assert ends == {70_000} == {AutoTokenizer.from_pretrained(tokenizer).eos_token_id}
    assert check_tokenizer(tokens, tokenizer)["vocab_size"] == 70_001
    tokens.tokenizer["vocab_size"] = 1025  # the count of tokens, as an older version wrote it
    with pytest.raises(UserError, match=r"go to 70,000, more than the shards of .* can hold, .* tokenize again"):
        check_tokenizer(tokens, tokenizer)
