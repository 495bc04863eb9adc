"""A run that begins from a HuggingFace model computes what that model does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from recipe.base.model_shape import load_model_shape
from recipe.huggingface.weights_folder import SafetensorsFolder
from recipe.run.job import check_job
from recipe.run.records import read_metrics
from tests.conftest import ROOT, RunFiles, launch, run_python

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("exported")]
IMPORT, TINY = "recipe/import_model.py", ROOT / "recipe" / "configs" / "models" / "tiny"


def imported(model, run: RunFiles, ds, output, *more):
    """Import, and export what was imported."""
    done = launch(2, IMPORT, "--model", model, *run.arguments(ds, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    done = launch(2, "recipe/export.py", "--run", run.run_dir, "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_imported_model_is_the_one_that_was_exported(exported, new_run, write_ds, tmp_path):
    done = run_python(IMPORT, "--model", exported, "--write-shape", tmp_path / "shape")
    assert done.returncode == 0, done.stderr
    trained = {"max_position_embeddings": 32}  # what the run's sequences were
    assert load_model_shape(tmp_path / "shape") == load_model_shape(TINY).model_copy(update=trained)
    run, ds = new_run("on", model=str(tmp_path / "shape")), write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    imported(exported, run, ds, tmp_path / "again")
    before, after = SafetensorsFolder(exported), SafetensorsFolder(tmp_path / "again")
    assert before.names == after.names
    assert all(torch.equal(before(name), after(name)) for name in before.names)


def stock_loss(model, order, sequences: range) -> float:
    """Mean loss of these sequences of a run in a model of stock transformers."""
    tokens = torch.tensor(np.stack([order.sequence(number) for number in sequences])).long()
    with torch.no_grad():
        logits = model.float().eval()(tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def test_a_qwen3_moe_trains_on_and_goes_back(prepared, new_run, write_ds, tmp_path):
    """Under ZeRO-3 and AutoEP: the loss at the first step is the source's, at the last the exported model's."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    experts = {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]}
    source = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=4096, head_dim=32, **sizes, **experts, initializer_range=0.1)
    )
    source.save_pretrained(tmp_path / "source")
    done = run_python(IMPORT, "--model", tmp_path / "source", "--write-shape", tmp_path / "shape")
    assert done.returncode == 0, done.stderr
    run = new_run("on", model=str(tmp_path / "shape"), routing={"bias_update_rate": 0.0})
    ds = write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
    done = launch(2, IMPORT, "--model", tmp_path / "source", *run.arguments(ds))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "note: " not in done.stdout
    refused = launch(2, "recipe/train.py", *run.arguments(ds))
    assert (refused.returncode, "add --resume auto" in refused.stderr) == (2, True)
    done = launch(2, "recipe/train.py", *run.arguments(ds, "--resume", "auto"))
    assert done.returncode == 0, done.stderr[-3000:]
    steps, order = read_metrics(run.run_dir), check_job(run.config, [], ds, None).order
    assert steps[0]["loss"] == pytest.approx(stock_loss(source, order, range(8)), abs=0.02)
    assert (steps[-1]["step"], steps[-1]["loss"] < steps[0]["loss"] - 0.3) == (20, True)

    done = launch(2, "recipe/export.py", "--run", run.run_dir, "--output", tmp_path / "export")
    assert done.returncode == 0, done.stderr[-3000:]
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert (type(again), not report["missing_keys"], not report["unexpected_keys"]) == (Qwen3MoeForCausalLM, True, True)
    # the last update is small
    assert steps[-1]["loss"] == pytest.approx(stock_loss(again, order, range(19 * 8, 20 * 8)), abs=0.05)


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


def test_an_upcycled_model_computes_what_the_dense_one_did_through_the_engine(
    dense, prepared, new_run, write_ds, tmp_path
):
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
