"""How the engine is built; that it computes what it should is test_routing_oracle.py's."""

from __future__ import annotations

from types import SimpleNamespace

import deepspeed
import pytest
import torch

from recipe.base.errors import UserError
from recipe.base.hardware import GIB
from recipe.base.settings import Compute, Optimizer
from recipe.engine import build
from recipe.engine.build import check_compute, parameter_groups
from recipe.engine.moe.autoep import RecipeLayer, RecipeRouter, recipe_layers
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from tests.conftest import ROOT, ds_config, launch


def test_autoep_gets_its_own_classes_back():
    from deepspeed.module_inject import auto_ep_layer

    original = auto_ep_layer.TokenChoiceTopKRouter, auto_ep_layer.AutoEPMoELayer
    with pytest.raises(KeyError), recipe_layers():  # noqa: PT012
        assert auto_ep_layer.TokenChoiceTopKRouter is RecipeRouter
        assert auto_ep_layer.AutoEPMoELayer is RecipeLayer
        raise KeyError
    assert (auto_ep_layer.TokenChoiceTopKRouter, auto_ep_layer.AutoEPMoELayer) == original


def test_weight_decay_touches_matrices_but_not_embeddings_norms_or_biases():
    model = torch.nn.ModuleDict(
        {"embed_tokens": torch.nn.Embedding(3, 2), "linear": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}
    )
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert len(spared["params"]) == 4


def test_the_optimizer_is_the_run_configs(monkeypatch):
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    monkeypatch.setattr(build, "build_model", lambda *_: model)
    engine = SimpleNamespace(module=model)
    monkeypatch.setattr(
        deepspeed,
        "initialize",
        lambda model, optimizer, config: (setattr(engine, "optimizer", optimizer([])) or engine,),
    )
    settings = Optimizer(betas=(0.8, 0.7), eps=1e-5, weight_decay=0.3)
    ds = {"zero_optimization": {"stage": 1}}
    optimizer = build.build_engine(None, ds, seed=0, optimizer=settings, compute=Compute()).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["betas"], g["eps"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        ((0.8, 0.7), 1e-5, 0.3, 1),
        ((0.8, 0.7), 1e-5, 0.0, 3),
    ]


def test_compiling_without_a_compiler_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_compute(Compute(compile=True))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        check_compute(Compute(compile=True))
    check_compute(Compute())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package triton"):
        check_compute(Compute(compile=True))


def test_a_flash_attention_whose_result_cannot_be_kept_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    flash = Compute(recompute="selective", attention="flash_attention_2")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.6.3")
    with pytest.raises(UserError, match=r"needs flash-attn 2\.7 or newer"):
        check_compute(flash)
    check_compute(Compute(recompute="non_reentrant", attention="flash_attention_2"))
    for version in ("2.7.0.post2", "2.10.1", "3.0"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        check_compute(flash)


def test_a_run_keeps_what_fits_the_ds_configs_budget(monkeypatch):
    config = RecipeMoeConfig.from_folder(ROOT / "recipe/configs/models/tiny")
    asked = []
    monkeypatch.setattr(RecipeMoeForCausalLM, "recompute_layers", lambda model, *words: asked.append(words))
    monkeypatch.setattr(deepspeed, "initialize", lambda **_: (SimpleNamespace(module=torch.nn.Module()),))
    # The first two results of all 4 layers: 2 * 64 tokens * (4 bytes * 2 * 128, and 4 heads' sums of 4 bytes).
    kept_gib = 4 * 2 * 64 * (4 * (128 + 128) + 4 * 4) / GIB
    ds = ds_config(1, micro_batch=2, accumulation=1, autoep_size=1, stage=1, recipe={"kept_gib": kept_gib})
    for mode, seq_length in (("selective", 64), ("selective", None), ("non_reentrant", 64), ("reentrant", 64)):
        compute = Compute(recompute=mode)
        build.build_engine(config, ds, seed=0, optimizer=Optimizer(), compute=compute, seq_length=seq_length)
    names = [[sorted(names_of(layer)) for layer in (0, 3)] for _, names_of in asked]
    assert names == [[["attention", "attention_projection"]] * 2, [[], []], [[], []], [[], []]]
    assert [use_reentrant for use_reentrant, _ in asked] == [False, False, False, True]


@pytest.mark.distributed
def test_what_is_beyond_the_end_of_a_parameter_is_not_what_the_memory_held(write_ds):
    ds_path = write_ds(3, micro_batch=1, accumulation=1, autoep_size=1)  # three ranks divide no parameter
    done = launch(3, "tests/recipe/engine/padding_worker.py", ds_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all partitions are finite") == 3
