"""A tokenizer's way to split text is named for llama.cpp only where it is that, to the last setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from data_prep.train_tokenizer import TokenizerConfig, new_tokenizer
from recipe.huggingface.split_patterns import composes, llama_cpp_name


def content_of(digits: str = "single", marks: str = "split") -> dict[str, Any]:
    config = TokenizerConfig(vocab_size=300, sample_bytes=1, digits=digits, combining_marks=marks)
    return json.loads(new_tokenizer(config).to_str())


def folder_of(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("digits", "marks", "name"),
    [
        ("single", "split", "qwen2"),
        ("triple", "split", "chatglm-bpe"),
        ("single", "join", "qwen35"),
        ("triple", "join", None),
    ],
)
def test_what_train_tokenizer_makes_has_a_name_in_llama_cpp(digits, marks, name, tmp_path):
    folder = folder_of(tmp_path, content_of(digits, marks))
    assert llama_cpp_name(folder) == name
    assert composes(folder)


def test_words_digits_and_chinese_are_split_as_the_patterns_say():
    config = TokenizerConfig(vocab_size=300, sample_bytes=1)
    split = new_tokenizer(config).pre_tokenizer.pre_tokenize_str
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str

    def words(text: str) -> list[str]:
        return [piece for piece, _ in split(text)]

    assert words("don't x1=22\n\n    return") == ["don", "'t", "Ġx", "1", "=", "2", "2", "ĊĊ", "ĠĠĠ", "Ġreturn"]
    assert words("青石镇，用Python写") == [byte_level(word)[0][0] for word in ("青石镇", "，用Python写")]


@pytest.mark.parametrize("marks", ["split", "join"])
def test_han_and_kana_stay_together(marks):
    config = TokenizerConfig(vocab_size=300, sample_bytes=1, combining_marks=marks)
    assert pieces(config, "東京に住んでいる人々のコンピューターは、古い。") == [
        "東京に住んでいる人々のコンピューターは",
        "、古い",
        "。",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भारत की भाषा", ["हिन्दी", " भारत", " की", " भाषा"]),
        ("ภาษาไทยมีผู้พูดมาก ครับ", ["ภาษาไทยมีผู้พูดมาก", " ครับ"]),
        ("العَرَبِيَّة لغة", ["العَرَبِيَّة", " لغة"]),
    ],
    ids=["hindi", "thai", "arabic"],
)
def test_marks_are_joined_to_their_letters_where_that_is_asked_for(text, words):
    assert pieces(TokenizerConfig(vocab_size=300, combining_marks="join"), text) == words
    assert len(pieces(TokenizerConfig(vocab_size=300), text)) > len(words)


def pieces(config: TokenizerConfig, text: str) -> list[str]:
    return [text[start:stop] for _, (start, stop) in new_tokenizer(config).pre_tokenizer.pre_tokenize_str(text)]


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_has_no_name(tmp_path):
    def name_with(change) -> str | None:
        content = content_of()
        change(content)
        return llama_cpp_name(folder_of(tmp_path, content))

    split, byte_level = (lambda c, i=i: c["pre_tokenizer"]["pretokenizers"][i] for i in (0, 1))
    assert name_with(lambda c: None) == "qwen2"
    for change in (
        lambda c: split(c)["pattern"].update(Regex=r"\p{Han}+|" + split(c)["pattern"]["Regex"]),
        lambda c: split(c).update(pattern={"String": " "}),
        lambda c: split(c).update(invert=True),
        lambda c: split(c).update(behavior="Removed"),
        lambda c: byte_level(c).update(add_prefix_space=True),
        lambda c: byte_level(c).update(use_regex=True),
        lambda c: c["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True}),
        lambda c: c.update(pre_tokenizer=byte_level(c)),
        lambda c: c.update(pre_tokenizer=None),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        lambda c: c["model"].update(ignore_merges=True),
        lambda c: c["model"].update(byte_fallback=True),
        lambda c: c["model"].update(type="Unigram"),
    ):
        assert name_with(change) is None


def test_a_tokenizer_without_a_normalizer_has_nothing_to_compose(tmp_path):
    folder = folder_of(tmp_path, {**content_of(), "normalizer": None})
    assert (llama_cpp_name(folder), composes(folder)) == ("qwen2", False)
