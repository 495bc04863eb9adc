"""What launch/generate.py refuses, in this process."""

from __future__ import annotations

import shutil

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from launch import generate


@pytest.fixture(scope="module")
def exported(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(prepared.tokenizer, folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen3ForCausalLM(
        Qwen3Config(vocab_size=1024, num_key_value_heads=2, head_dim=8, bos_token_id=None, eos_token_id=0, **sizes)
    ).save_pretrained(folder)
    return folder


def test_prompts_are_continued(exported, capsys):
    words = ["--model", str(exported), "--prompt", "The", "--prompt", "A", "--max-new-tokens", "2"]
    assert generate.main(words) == 0
    continued = capsys.readouterr().out
    assert continued.startswith("[Qwen3ForCausalLM] The")
    assert "\n[Qwen3ForCausalLM] A" in continued


def test_ctrl_c_is_one_sentence(exported, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate.AutoTokenizer, "from_pretrained", interrupted)
    assert generate.main(["--model", str(exported), "--prompt", "The"]) == 130
    assert capsys.readouterr().err == "interrupted; what was continued stands above\n"


def test_a_prompt_without_tokens_is_refused(exported, capsys):
    assert generate.main(["--model", str(exported), "--prompt", "The", "--prompt", ""]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: --prompt '' has no tokens, which nothing continues; give some text\n"


def test_a_prompt_that_is_no_text_is_refused(exported, capsys):
    assert generate.main(["--model", str(exported), "--prompt", "\udcff"]) == 2
    assert "error: --prompt '\\udcff' is not UTF-8; give it in that encoding\n" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-3", "0", "x", "1.5", ""])
def test_a_number_of_tokens_is_above_0(number, exported, capsys):
    with pytest.raises(SystemExit) as exit_:
        generate.main(["--model", str(exported), "--prompt", "The", f"--max-new-tokens={number}"])
    assert exit_.value.code == 2
    assert f"must be a whole number above 0, not '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"model_type": ["a"]}'),
        ("model.safetensors", "x"),
        ("model.safetensors", None),
        ("tokenizer.json", "{"),
    ],
)
def test_a_damaged_folder_ends_in_one_sentence(file, content, exported, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert generate.main(["--model", str(folder), "--prompt", "The"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --model {folder} is not read by transformers: ")
    assert error.count("\n") == 1
