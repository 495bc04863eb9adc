"""The converter of llama.cpp is told how an exported tokenizer splits text, and nothing is converted that it would split otherwise."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from launch.to_gguf import main
from recipe.base.strict import load_json
from recipe.huggingface.tokenizer_folder import write_tokenizer

TEXT_MODEL = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
    def _set_vocab_gpt2(self):
        return self.get_vocab_base_pre(None)
    def _set_vocab_glm(self):
        raise KeyError("[gMASK]")
    def _set_vocab_sentencepiece(self):
        raise ModuleNotFoundError("sentencepiece")
"""
MAIN = """
import json, sys
class Glm4MoeModel(TextModel):
    def set_vocab(self):
        return self._set_vocab_glm()
class MixtralModel(TextModel):
    def set_vocab(self):
        return self._set_vocab_sentencepiece()
def main():
    names = [Glm4MoeModel().set_vocab(), MixtralModel().set_vocab()]
    with open(sys.argv[sys.argv.index("--outfile") + 1], "w") as file:
        json.dump({"argv": sys.argv, "names": names}, file)
"""


@pytest.fixture
def asked(prepared, tmp_path, monkeypatch):
    """Words for the command, with a checkout of llama.cpp as it is since 2026 that writes down what it was told."""
    for module in ("conversion", "convert_hf_to_gguf"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "argv", ["to_gguf.py"])
    write_tokenizer(prepared.tokenizer, tmp_path / "model", model_max_length=128)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "llama.cpp" / "conversion").mkdir(parents=True)
    (tmp_path / "llama.cpp" / "conversion" / "__init__.py").write_text(TEXT_MODEL)
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("from conversion import TextModel\n" + MAIN)
    words = [
        "--model",
        tmp_path / "model",
        "--llama-cpp",
        tmp_path / "llama.cpp",
        "--output",
        tmp_path / "new" / "a.gguf",
    ]
    yield [*map(str, words), "--", "--outtype", "bf16"]
    for module in ("conversion", "convert_hf_to_gguf"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("older", [False, True])
def test_the_converter_is_told_the_name_and_given_its_arguments(older, asked, tmp_path, capsys):
    if older:  # all in one script
        shutil.rmtree(tmp_path / "llama.cpp" / "conversion")
        (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(TEXT_MODEL + MAIN)
    assert main(asked) == 0
    model, output = str(tmp_path / "model"), str(tmp_path / "new" / "a.gguf")
    assert load_json(tmp_path / "new" / "a.gguf") == {
        "argv": ["convert_hf_to_gguf.py", model, "--outfile", output, "--outtype", "bf16"],
        "names": ["qwen2", "qwen2"],
    }
    printed = capsys.readouterr().out
    assert f"{output} splits text as qwen2, as {model}/tokenizer.json does\n" in printed
    assert "note: llama.cpp does not compose Unicode" in printed


def test_what_llama_cpp_would_split_otherwise_is_refused_before_anything_is_made(asked, tmp_path, capsys):
    path = tmp_path / "model" / "tokenizer.json"
    content = load_json(path)
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += r"|\p{Han}+"
    path.write_text(json.dumps(content))
    assert main(asked) == 2
    assert "error: llama.cpp does not split text as" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


QWEN3 = {"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": []}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**QWEN3, "norm_topk_prob": False}, "its qwen3_moe always has norm_topk_prob true"),
        ({**QWEN3, "mlp_only_layers": [0]}, "its qwen3_moe has no dense layers"),
        ({"model_type": "glm4_moe", "n_shared_experts": 0}, "its glm4_moe always has shared experts"),
        (QWEN3, None),
        ({"model_type": "glm4_moe", "n_shared_experts": 1, "norm_topk_prob": False}, None),
        ({"model_type": "mixtral"}, None),
    ],
)
def test_a_model_that_llama_cpp_takes_for_another_is_refused(config, message, asked, tmp_path, capsys):
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(asked) == (2 if message else 0)
    assert (message or "splits text as qwen2") in "".join(capsys.readouterr())


def test_a_folder_that_is_none_of_the_right_kind_is_named(asked, tmp_path, capsys):
    (tmp_path / "model" / "config.json").unlink()
    assert main(asked) == 2
    assert "holds no config.json; give a folder written by recipe/export.py" in capsys.readouterr().err
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").unlink()
    assert main(asked) == 2
    assert "holds no convert_hf_to_gguf.py; give a checkout of llama.cpp" in capsys.readouterr().err
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").touch()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.gguf").touch()
    assert main(asked) == 2
    assert "a.gguf exists; choose a new file" in capsys.readouterr().err
