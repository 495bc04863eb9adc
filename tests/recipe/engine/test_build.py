"""How the engine is built; that it computes what it should is test_routing_oracle.py's."""

from __future__ import annotations

import deepspeed
import pytest
import torch

from recipe.base.errors import UserError
from recipe.base.settings import Compute, Optimizer
from recipe.engine import build
from recipe.engine.autoep import RecipeLayer, RecipeRouter, recipe_layers
from recipe.engine.build import check_compute, parameter_groups
from tests.conftest import launch


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
    monkeypatch.setattr(
        deepspeed, "initialize", lambda model, optimizer, config: (optimizer(list(model.parameters())),)
    )
    settings = Optimizer(betas=(0.8, 0.7), eps=1e-5, weight_decay=0.3)
    ds = {"zero_optimization": {"stage": 1}}
    optimizer = build.build_engine(None, ds, seed=0, optimizer=settings, compute=Compute())
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


@pytest.mark.distributed
def test_what_is_beyond_the_end_of_a_parameter_is_not_what_the_memory_held(write_ds):
    ds_path = write_ds(3, micro_batch=1, accumulation=1, autoep_size=1)  # three ranks divide no parameter
    done = launch(3, "tests/recipe/engine/padding_worker.py", ds_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all partitions are finite") == 3
