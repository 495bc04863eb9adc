"""The converter of llama.cpp is told how an exported tokenizer splits text, and nothing is converted that it would split otherwise."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
    with open(sys.argv[sys.argv.index("--outfile") + 1].format(ftype="f32"), "wb") as file:
        file.write(b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little"))
        file.write(json.dumps({"argv": sys.argv, "names": names}).encode())
"""


def written(path: Path) -> dict:
    """What the converter of these tests was told; a GGUF file begins with 16 bytes."""
    return json.loads(path.read_bytes()[16:])


@pytest.fixture
def asked(prepared, tmp_path, monkeypatch):
    """Words for the command, with a checkout of llama.cpp as it is since 2026 that writes down what it was told."""
    for module in ("conversion", "convert_hf_to_gguf"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "argv", ["to_gguf.py"])
    write_tokenizer(prepared.tokenizer, tmp_path / "model", model_max_length=128)
    (tmp_path / "model" / "config.json").write_text("{}")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model" / "model.safetensors")
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
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gguf"]
    assert written(tmp_path / "new" / "a.gguf") == {
        "argv": ["convert_hf_to_gguf.py", model, "--outfile", f"{output}.partial", "--outtype", "bf16"],
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


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
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
        ({**QWEN3, "rope_parameters": {**YARN, "beta_fast": 16.0, "mscale": 1.0}}, "whatever beta_fast, mscale says"),
        ({**QWEN3, "rope_scaling": {**YARN, "truncate": False}}, "whatever truncate says"),
        ({**QWEN3, "rope_scaling": {**YARN, "attention_factor": 1.2}}, "whatever attention_factor says"),
        (
            {**QWEN3, "rope_parameters": {**YARN, "beta_fast": 32, "truncate": True}},
            "wrote a file without the model's YaRN",
        ),
    ],
)
def test_a_model_that_llama_cpp_takes_for_another_is_refused(config, message, asked, tmp_path, capsys):
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(asked) == (2 if message else 0)
    assert (message or "splits text as qwen2") in "".join(capsys.readouterr())


def test_the_keys_of_yarn_are_looked_for_in_what_was_written(asked, tmp_path):
    (tmp_path / "model" / "config.json").write_text(json.dumps({**QWEN3, "rope_parameters": YARN}))
    converter = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    converter.write_text(
        converter.read_text().replace('"names": names', '"qwen3moe.rope.scaling.original_context_length": 4096')
    )
    assert main(asked) == 0


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


def test_braces_in_the_name_of_the_output_stay(asked, tmp_path):
    words = [word.replace("a.gguf", "a{ftype}.gguf") for word in asked]
    assert main(words) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a{ftype}.gguf"]


@pytest.mark.parametrize(
    "words",
    [
        ["--outfile", "x.gguf"],
        ["--outfile=x.gguf"],
        ["--outf", "x.gguf"],
        ["--print-supported-models"],
        ["--print"],
        ["-h"],
        ["--dry-run"],
        ["--vocab-only"],
        ["--split-max-size", "2G"],
        ["--remote"],
    ],
)
def test_arguments_that_leave_no_model_at_the_output_are_refused(words, asked, tmp_path, capsys):
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("raise AssertionError('it is not loaded')")
    assert main([*asked, *words]) == 2
    assert f"error: {words[0]} among the converter's arguments" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def _without(model):
    (model / "model.safetensors").unlink()


def _empty(model):
    save_file({}, model / "model.safetensors")


def _cut(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _file(name, text):
    return lambda model: (model / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "holds no model.safetensors"),
        (_empty, "holds no tensors"),
        (_cut, "model.safetensors cannot be read"),
        (_file("config.json", "{"), "config.json is not valid"),
        (_file("config.json", "[1]"), "config.json holds no mapping of settings"),
        (_file("tokenizer.json", "[1]"), "tokenizer.json is not laid out as a tokenizer is"),
        (
            _file(
                "tokenizer.json",
                '{"model": {"type": "BPE"}, "pre_tokenizer": {"pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}}',
            ),
            "tokenizer.json is not laid out as a tokenizer is",
        ),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_refused_before_anything_is_made(
    damage, message, asked, tmp_path, capsys
):
    damage(tmp_path / "model")
    assert main(asked) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import package_that_is_missing.part",
            "needs the Python package package_that_is_missing, which is not installed",
        ),
        ("from json import a_name_that_is_missing", "converter cannot be loaded: cannot import name"),
        ("import conversion.no_such_part", "lacks the folder conversion"),
        ("", "has no class TextModel or no main()"),
        ("def main(): import package_that_is_missing", "needs the Python package package_that_is_missing"),
        ("def main(): raise SystemExit(1)", "converter ended with 1"),
        ("def main(): raise SystemExit(0)", "ended without writing the model"),
        ("def main(): pass", "ended without writing the model"),
        (
            "def main(): raise ValueError('Invalid split size: x')",
            "ended with ValueError: Invalid split size: x (convert_",
        ),
        ("def main(): open('no such file')", "ended with FileNotFoundError"),
        ("def main(): open(sys.argv[3], 'wb').write(b'GGUF' + bytes([3]) + bytes(40))", "wrote a file without tensors"),
        ("def main(): open(sys.argv[3], 'wb').write(b'GGUF')", "wrote a file without tensors"),
        ("def main(): open(sys.argv[3], 'wb').write(b'GGUF'); raise SystemExit('no')", "converter ended with no"),
    ],
)
def test_a_converter_that_ends_without_a_model_leaves_nothing(script, message, asked, tmp_path, capsys):
    begin = "import sys\nfrom conversion import TextModel\n" if "main" in script else ""
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(f"{begin}{script}\n")
    assert main(asked) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_interruption_leaves_nothing_of_its_own(asked, tmp_path):
    script = "def main():\n open(sys.argv[3], 'wb').close()\n raise KeyboardInterrupt\n"
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(
        f"import sys\nfrom conversion import TextModel\n{script}"
    )
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "other").touch()
    assert main(asked) == 130
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]
