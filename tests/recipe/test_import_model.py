"""What an import refuses and says before ranks meet, in this process."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from recipe import branch, export, import_model
from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.routing import Routing
from recipe.engine import build as engine
from recipe.engine import session
from recipe.run import folder as run_folder
from tests.conftest import ROOT

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


class RanksMeet(Exception):
    pass


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS)).save_pretrained(folder)
    return folder


@pytest.fixture
def imported(source, tmp_path, monkeypatch, capsys):
    """Import `source` up to where ranks meet: the exit code, 0 there, and what is printed."""
    assert import_model.main(["--model", str(source), "--write-shape", str(tmp_path / "shape")]) == 0
    (tmp_path / "tokenizer").mkdir()
    write_vocabulary(tmp_path / "tokenizer", {"a": 0, "b": 1})
    capsys.readouterr()

    def meet(watch):
        raise RanksMeet

    monkeypatch.setattr(session, "session", meet)
    monkeypatch.setattr(import_model, "required_world_size", lambda: 2)
    monkeypatch.setattr(run_folder, "check_run_folder", lambda launch, resumes: None)
    monkeypatch.setattr(engine, "check_compute", lambda compute: None)

    def run(**routing) -> tuple[int, str]:
        config = SimpleNamespace(
            run_dir=tmp_path / "run", compute=None, watch=None, seed=0, routing=Routing(**routing), tokenizer=tmp_path / "tokenizer"
        )  # fmt: skip
        launch = SimpleNamespace(run=config, shape=load_model_shape(tmp_path / "shape"))
        monkeypatch.setattr(import_model, "check_job", lambda *_: launch)
        try:
            code = import_model.main(["--model", str(source), "--config", "run.yaml", "--deepspeed_config", "ds.json"])
        except RanksMeet:
            code = 0
        printed = capsys.readouterr()
        assert not (tmp_path / "run").exists()
        return code, printed.out + printed.err

    return run


def write_vocabulary(folder, vocabulary):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))


def test_damaged_weights_are_refused_before_ranks_meet(imported, source):
    assert imported(bias_update_rate=0.0) == (0, "")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    code, message = imported()
    assert (code, "no tensor 'model.layers.1.mlp.experts.3.up_proj.weight'" in message) == (2, True)


def test_what_could_not_be_exported_again_is_said(imported):
    code, message = imported()
    assert (code, "note: this model would be exported as qwen3_moe, which has no expert bias" in message) == (0, True)


@pytest.mark.parametrize(
    ("vocabulary", "note"),
    [
        ({"b": 1, "a": 0, "c": 2}, None),  # more than the run's
        ({"a": 1, "b": 0}, "note: 2 of 2 tokens of "),
        ([["a", -1.0], ["c", -2.0]], "note: 1 of 2 tokens of "),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_said(vocabulary, note, imported, source):
    write_vocabulary(source, vocabulary)
    code, printed = imported(bias_update_rate=0.0)
    assert code == 0
    if note is None:
        assert printed == ""
    else:
        assert printed.startswith(note)


@pytest.mark.parametrize(
    "content",
    [[], {}, {"model": None}, {"model": {"vocab": [1]}}, {"model": {"vocab": {}}, "added_tokens": [{"id": 3}]}, {"model": {"vocab": 5}}],
)  # fmt: skip
def test_a_damaged_tokenizer_of_the_model_ends_in_one_sentence(content, imported, source):
    (source / "tokenizer.json").write_text(json.dumps(content))
    code, message = imported(bias_update_rate=0.0)
    assert (code, message.count("\n")) == (2, 1)
    assert "source/tokenizer.json has no vocabulary as the tokenizers library writes it; fetch it again" in message


@pytest.mark.parametrize(
    ("model", "folder", "message"),
    [
        ("source", "file", "--write-shape {}/file cannot be written: {}/file is no folder; choose another folder"),
        ("source", "file/below", "so nothing can be made below it; choose another folder"),
        ("source", "source", "{}/source/config.json exists; choose another folder"),
        ("Qwen/Qwen3-30B-A3B", "shape", "--model {}/Qwen/Qwen3-30B-A3B is no folder; download the model first and give its folder"),
        ("source/config.json", "shape", "--model {}/source/config.json is a file; give the folder that it is in"),
        ("empty", "shape", "--model {}/empty holds no config.json; give the folder of a HuggingFace model"),
    ],
)  # fmt: skip
def test_folders_that_a_shape_is_not_read_from_or_written_to(model, folder, message, source, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    words = ["--model", str(tmp_path / model), "--write-shape", str(tmp_path / folder)]
    assert import_model.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message.replace("{}", str(tmp_path)) in error
    assert not (tmp_path / "shape").exists()


def test_the_shape_of_an_upcycled_model_is_written_with_experts(tmp_path, capsys):
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES)).save_pretrained(tmp_path / "dense")
    words = ["--model", str(tmp_path / "dense"), "--write-shape", str(tmp_path / "shape")]
    assert import_model.main(words) == 2
    assert "is a dense qwen3; add --upcycle" in capsys.readouterr().err
    assert import_model.main([*words, "--upcycle"]) == 0
    assert "(n_shared_experts + num_experts_per_tok) * moe_intermediate_size is 48" in capsys.readouterr().out
    shape = load_model_shape(tmp_path / "shape")
    assert (shape.n_routed_experts, shape.num_experts_per_tok, shape.moe_intermediate_size) == (8, 2, 24)


def test_a_written_shape_says_what_comes_next(source, tmp_path, capsys):
    assert import_model.main(["--model", str(source), "--write-shape", str(tmp_path / "shape")]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path}/shape/config.json, the shape of {source}" in printed
    assert f"set `model: {tmp_path}/shape` in the run config" in printed
    (example,) = re.findall(r"recipe/configs/\S+\.yaml", printed)
    assert (ROOT / example).exists()


@pytest.mark.parametrize("words", [["--model", "a"], ["--model", "a", "--config", "run.yaml"]])
def test_what_an_import_needs_is_said(words, capsys):
    with pytest.raises(SystemExit) as end:
        import_model.main(words)
    assert end.value.code == 2
    message = "give --config and --deepspeed_config to import the model, or --write-shape DIR to write its shape"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", [branch, export, import_model])
def test_the_run_configs_that_an_example_names_are_shipped_or_explained(script):
    """A newcomer can type the examples."""
    for name in re.findall(r"\S+\.yaml", script.EXAMPLE):
        assert (ROOT / name).exists() or f"{name} is " in script.EXAMPLE, name
