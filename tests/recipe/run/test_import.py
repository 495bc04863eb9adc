"""A run that begins from a HuggingFace model computes what that model does."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import load_model_shape
from recipe.base.run_records import read_metrics
from recipe.huggingface.import_weights import SafetensorsFolder, same_model, upcycled
from tests.conftest import ROOT, RunFiles, launch, run_python

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("exported")]
IMPORT, TINY = "recipe/import_model.py", ROOT / "recipe" / "configs" / "models" / "tiny"


def imported(model, run: RunFiles, ds, output, *more):
    """Import, and export what was imported."""
    done = launch(2, IMPORT, "--model", model, *run.arguments(ds, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    done = launch(2, "recipe/export.py", "--run", run.run_dir, "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_imported_model_is_the_one_that_was_exported_and_trains_on(exported, new_run, write_ds, tmp_path):
    done = run_python(IMPORT, "--model", exported, "--write-shape", tmp_path / "shape")
    assert done.returncode == 0, done.stderr
    assert load_model_shape(tmp_path / "shape") == load_model_shape(TINY)
    run, ds = new_run("on", model=str(tmp_path / "shape")), write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    imported(exported, run, ds, tmp_path / "again")
    before, after = SafetensorsFolder(exported), SafetensorsFolder(tmp_path / "again")
    assert before.names == after.names
    assert all(torch.equal(before(name), after(name)) for name in before.names)
    refused = launch(2, "recipe/train.py", *run.arguments(ds))
    assert (refused.returncode, "add --resume auto" in refused.stderr) == (2, True)
    done = launch(2, "recipe/train.py", *run.arguments(ds, "--resume", "auto"))
    assert done.returncode == 0, done.stderr[-3000:]
    steps = read_metrics(run.run_dir)
    assert steps[0]["loss"] < 8.0 < 8.3  # a new model's is ln 4096 = 8.3
    assert steps[-1]["step"] == 20


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense model of stock transformers: every layer's MLP is as wide as one shared and two chosen experts of tiny."""
    shape = load_model_shape(TINY)
    values = shape.model_dump(exclude={"model_type", "scoring_func"})
    layers = shape.num_hidden_layers
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(
        Glm4MoeConfig(**{**values, "first_k_dense_replace": layers, "intermediate_size": 3 * 96})
    )
    folder = tmp_path_factory.mktemp("dense") / "model"
    model.save_pretrained(folder)
    return folder, model


def test_an_upcycled_model_computes_what_the_dense_one_did(dense, prepared, new_run, write_ds, tmp_path):
    folder, model = dense
    shape = {
        **json.loads((TINY / "config.json").read_text()),
        "intermediate_size": 3 * 96,
        "routed_scaling_factor": 2.5,
    }
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(shape))
    run, ds = new_run("moe", model=str(tmp_path / "shape")), write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    imported(folder, run, ds, tmp_path / "export", "--upcycle")
    moe = Glm4MoeForCausalLM.from_pretrained(tmp_path / "export")
    tokens = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = model.eval()(tokens).logits, moe.eval()(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    groups = moe.model.layers[1].mlp.gate.weight
    assert torch.equal(groups[0], groups[1])
    assert not torch.equal(groups[0], groups[2])


def test_a_hub_folder_with_experts_one_by_one_is_the_same_model(exported, tmp_path):
    shape, stacked = load_model_shape(TINY), SafetensorsFolder(exported)
    from safetensors.torch import save_file

    tensors = {}
    for name in stacked.names:
        prefix, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for expert, both in enumerate(stacked(name)):
                for half, part in zip(("gate", "up"), both.chunk(2), strict=True):
                    tensors[f"{prefix}.{expert}.{half}_proj.weight"] = part.contiguous()
        elif kind == "down_proj":
            tensors |= {
                f"{prefix}.{expert}.down_proj.weight": part.contiguous() for expert, part in enumerate(stacked(name))
            }
        else:
            tensors[name] = stacked(name)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    weights = same_model(tmp_path, shape)
    assert all(torch.equal(weights(name), stacked(name)) for name in stacked.names)


def test_models_that_do_not_fit_are_refused(exported, dense, tmp_path):
    shape = load_model_shape(TINY)
    with pytest.raises(ConfigError, match="hidden_size is 128 there and 256 in the run's model"):
        same_model(exported, shape.model_copy(update={"hidden_size": 256}))
    with pytest.raises(UserError, match="--upcycle is for a dense model"):
        upcycled(exported, shape, lambda name, rows: None)
    with pytest.raises(ConfigError, match=r"the dense MLP is 288 wide, and shared and chosen experts together 384"):
        upcycled(dense[0], shape.model_copy(update={"num_experts_per_tok": 3}), lambda name, rows: None)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"is a llama, not glm4_moe"):
        same_model(tmp_path, shape)
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        same_model(tmp_path, shape)
