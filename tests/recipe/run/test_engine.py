"""The engine's gradients equal the plain model's, router losses included, whatever the topology."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from recipe.base.hardware import accelerator_of
from recipe.base.strict import load_json
from recipe.run.autoep import RecipeRouter, recipe_router
from recipe.run.engine import parameter_groups
from tests.conftest import launch

WORKER = "tests/recipe/run/gradients_worker.py"


def compare(ranks, tmp_path, write_ds, model_changes=None, **sizes):
    changes = json.dumps(model_changes or {})
    done = launch(ranks, WORKER, write_ds(ranks, **sizes), tmp_path / "out.json", changes)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_json(tmp_path / "out.json")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [
        (1, {"micro_batch": 2, "accumulation": 4, "autoep_size": 1}),
        (2, {"micro_batch": 4, "accumulation": 1, "autoep_size": 2}),
        (2, {"micro_batch": 2, "accumulation": 2, "autoep_size": 2, "stage": 1}),
        (4, {"micro_batch": 2, "accumulation": 1, "autoep_size": 2}),
        (4, {"micro_batch": 1, "accumulation": 2, "autoep_size": 4}),
    ],
    ids=["1-ep1-accumulated", "2-ep2", "2-ep2-zero1-accumulated", "4-ep2", "4-ep4-accumulated"],
)
def test_gradients_equal_the_plain_models(ranks, sizes, tmp_path, write_ds):
    found = compare(ranks, tmp_path, write_ds, **sizes)
    assert len([name for name in found["worst"] if name.endswith("router.gate.weight")]) == 3
    assert {name: error for name, error in found["worst"].items() if error > 1e-4} == {}


@pytest.mark.distributed
def test_every_routing_setting_of_the_model_reaches_the_engines_routers(tmp_path, write_ds):
    changes = {
        "scoring_func": "softmax",
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "routed_scaling_factor": 2.5,
        "n_shared_experts": 2,
    }
    found = compare(2, tmp_path, write_ds, changes, micro_batch=4, accumulation=1, autoep_size=2)
    assert {name: error for name, error in found["worst"].items() if error > 1e-4} == {}


@pytest.mark.distributed
def test_the_router_stays_in_fp32_under_bf16(tmp_path, write_ds):
    found = compare(2, tmp_path, write_ds, micro_batch=4, accumulation=1, autoep_size=2, bf16={"enabled": True})
    assert found["dtypes"] == ["torch.float32"]
    # Rounding moves a few tokens to other experts, so single gradients may be off by more.
    assert statistics.median(found["worst"].values()) < 0.03


def test_autoep_gets_its_own_router_back():
    from deepspeed.module_inject import auto_ep_layer

    original = auto_ep_layer.TokenChoiceTopKRouter
    with pytest.raises(KeyError), recipe_router():  # noqa: PT012
        assert auto_ep_layer.TokenChoiceTopKRouter is RecipeRouter
        raise KeyError
    assert auto_ep_layer.TokenChoiceTopKRouter is original


def test_weight_decay_touches_matrices_but_not_embeddings_norms_or_biases():
    model = torch.nn.ModuleDict(
        {"embed_tokens": torch.nn.Embedding(3, 2), "linear": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}
    )
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert len(spared["params"]) == 4


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A800-SXM4-80GB", "a800"),
    ],
)
def test_known_gpus_are_recognised(device, name):
    assert accelerator_of(device).name == name


@pytest.mark.parametrize("device", ["NVIDIA H100 PCIe", "Tesla V100-SXM2-32GB"])
def test_unknown_gpus_get_no_mfu(device):
    assert accelerator_of(device) is None
