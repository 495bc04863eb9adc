"""Needles: what a text holds, what counts as recalled, and the command that asks an exported model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from recipe import evaluate_model
from recipe.base.errors import UserError
from recipe.evaluation.needle import LANGUAGES, Sample, accuracy, needle_sample, recalls, told_and_asked


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def text_of(tokens: np.ndarray) -> str:
    return "".join(map(chr, tokens))


def sample_of(name: str, *, length: int = 400, depth: float = 0.5, others: int = 2, seed: int = 0) -> Sample:
    generator = np.random.default_rng(seed)
    return needle_sample(LANGUAGES[name], characters, length=length, depth=depth, others=others, generator=generator)


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_question_is_the_beginning_of_one_needle_and_the_answer_its_end(name):
    language = LANGUAGES[name]
    for seed in range(20):
        sample = sample_of(name, seed=seed)
        text = text_of(sample.tokens)
        assert len(text) == 400
        answer = text[-sample.answer_tokens :]
        question = next(
            q for key in language.keys if text.endswith((q := language.text(language.question(key))) + answer)
        )
        assert answer in [language.text([password]) for password in language.passwords]
        assert text.count(question) == 2
        assert text.index(question + answer + language.stop) < len(text) - len(question + answer)
        needles = [key for key in language.keys if language.text(language.question(key)) in text]
        assert len(needles) == 3
        assert text.count(answer) == 2  # no other needle has this password


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_needle_stands_at_its_depth(name):
    places = []
    for depth in (0.0, 0.25, 0.5, 1.0):
        text = text_of(sample_of(name, length=3000, depth=depth).tokens)
        question = next(
            q for k in LANGUAGES[name].keys if text.count(q := LANGUAGES[name].text(LANGUAGES[name].question(k))) == 2
        )
        places.append(text.index(question) / len(text))
    assert places == pytest.approx([0, 0.25, 0.5, 0.98], abs=0.05)


def test_needles_that_fill_a_text_leave_no_room_and_more_are_refused():
    with pytest.raises(
        UserError, match=r"a needle among 9 others needs \d+ tokens; raise the length above 60"
    ) as caught:
        sample_of("en", length=60, others=9)
    needed = int(str(caught.value).split(" tokens")[0].split()[-1])
    assert len(sample_of("en", length=needed, others=9).tokens) == needed


def test_all_tokens_of_an_answer_count():
    sample = Sample(np.array([7, 8, 9, 5, 6]), answer_tokens=2)
    asked = []

    def predict(tokens: np.ndarray, keep: int) -> np.ndarray:
        asked.append((tokens.tolist(), keep))
        return np.array([5, 6])

    assert recalls(predict, sample)
    assert asked == [([7, 8, 9, 5], 2)]
    assert not recalls(lambda tokens, keep: np.array([5, 7]), sample)
    assert accuracy(lambda tokens, keep: np.array([5, 6]), [sample, Sample(np.array([5, 7]), 2)]) == 0.5


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_is_to_be_recalled_was_told_before(name):
    tokens, recalled = told_and_asked(LANGUAGES[name], characters, length=5000, generator=np.random.default_rng(0))
    text, language = text_of(tokens), LANGUAGES[name]
    starts = np.flatnonzero(np.diff(np.pad(recalled.astype(int), 1)) == 1)
    assert len(starts) > 20
    for start in starts:
        question = max(
            (q for key in language.keys if text[:start].endswith(q := language.text(language.question(key)))), key=len
        )
        told = text.index(question) + len(question)
        assert told < start
        again = text[start : start + 2]  # of the last one maybe less
        assert text[told:].startswith(again)
    asked = sum(text.count(language.text(language.question(key))) for key in language.keys)
    new = sum(language.text(language.question(key)) in text for key in language.keys)
    assert asked - new - len(starts) in (0, 1)  # the last may be cut


@pytest.fixture
def exported(prepared, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=512,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    shutil.copytree(prepared.tokenizer, tmp_path / "model", dirs_exist_ok=True)
    return tmp_path / "model"


def test_an_export_is_asked_at_every_length_and_depth(exported, tmp_path, capsys):
    words = ["needle", "--model", str(exported), "--lengths", "256", "512", "--depths", "3", "--samples", "2"]
    assert evaluate_model.main([*words, "--output", str(tmp_path / "needle.json")]) == 0
    first, head, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"asks {exported} for needles in texts of 256, 512 tokens in en, zh: 3 depths of 2 texts each"
    )
    assert head.split()[:2] == ["language", "tokens"]
    assert [row.split()[:2] for row in rows] == [[name, length] for name in ("en", "zh") for length in ("256", "512")]
    assert last == "guessing recalls 3.1% at most"
    found = json.loads((tmp_path / "needle.json").read_text())
    assert found["depths"] == [0.0, 0.5, 1.0]
    assert sorted(found["accuracy"]) == sorted(LANGUAGES)
    for of_length in found["accuracy"].values():
        assert {length: len(by_depth) for length, by_depth in of_length.items()} == {"256": 3, "512": 3}


def test_texts_beyond_the_models_positions_are_refused(exported, capsys):
    assert evaluate_model.main(["needle", "--model", str(exported), "--lengths", "513"]) == 2
    assert "exceeds the model's max_position_embeddings 512" in capsys.readouterr().err
