"""One process, no engine: the model of each architecture is exported and computes the same in stock transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.utils import groups
from torch import nn
from transformers import AutoModelForCausalLM

from recipe.base.model_shape import ModelShape
from recipe.base.strict import load_json
from recipe.checkpoints.export import Export, export_hf
from recipe.huggingface.tokenizer_folder import write_tokenizer_config
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from tests.conftest import ROOT

SOFTMAX = {"scoring_func": "softmax", "n_shared_experts": 0}


class Layer(AutoEPMoELayer):
    """The names of an AutoEP layer on one rank, of a block of the plain model."""

    def __init__(self, block: nn.Module):
        nn.Module.__init__(self)
        self.num_experts = self.num_local_experts = len(block.experts.down_proj)
        self.ep_size, self.ep_rank, self.ep_group_name = 1, 0, "ep_size_1"
        self.router, self.experts = nn.Module(), nn.Module()
        self.router.gate = nn.Linear(1, 1, bias=False)
        self.router.gate.weight = block.gate.weight
        self.router.register_buffer("e_score_correction_bias", block.gate.e_score_correction_bias)
        gate, up = block.experts.gate_up_proj.detach().chunk(2, dim=1)
        for name, weight in (("w1", gate), ("w3", up), ("w2", block.experts.down_proj.detach())):
            self.experts.register_parameter(name, nn.Parameter(weight.clone()))
        if hasattr(block, "shared_experts"):
            self.shared_experts = block.shared_experts


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A process group of this process, with one expert-parallel group."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    monkeypatch.setattr(groups, "_get_expert_data_parallel_rank", lambda name: 0)
    yield
    dist.destroy_process_group()


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models

    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, "a")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    write_tokenizer_config(tmp_path / "tokenizer", {"eos_token": "</s>"})
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Glm4MoeForCausalLM"),
        ({"n_shared_experts": 0, "attention_bias": True, "use_qk_norm": False}, "Glm4MoeForCausalLM"),
        ({"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 2}, "Glm4MoeForCausalLM"),
        ({**SOFTMAX, "norm_topk_prob": False}, "Qwen3MoeForCausalLM"),
        ({**SOFTMAX, "first_k_dense_replace": 0, "use_qk_norm": False}, "MixtralForCausalLM"),
    ],
    ids=["glm4_moe", "glm4_moe-none-shared", "glm4_moe-groups", "qwen3_moe", "mixtral"],
)
def test_stock_transformers_computes_what_the_model_does(changes, expected, alone, tokenizer, tmp_path):
    values = {**load_json(ROOT / "recipe/configs/models/tiny/config.json"), "vocab_size": 128, "initializer_range": 0.2}
    shape = ModelShape(**{**values, **changes})
    torch.manual_seed(0)
    ours = RecipeMoeForCausalLM(RecipeMoeConfig.from_shape(shape)).eval()
    for name, values_of in [*ours.named_parameters(), *ours.named_buffers()]:
        if expected == "Glm4MoeForCausalLM" or not name.endswith("e_score_correction_bias"):
            values_of.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    tokens = torch.randint(0, 128, (2, 24))
    with torch.no_grad():
        logits = ours(tokens).logits
    for layer in ours.model.layers[shape.first_k_dense_replace :]:
        layer.mlp = Layer(layer.mlp)
    export_hf(
        SimpleNamespace(module=ours, device=torch.device("cpu")),
        Export(tmp_path / "export", shape, tokenizer, max_position_embeddings=64),
    )
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert type(stock).__name__ == expected
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(tokens).logits, logits, rtol=1e-4, atol=1e-4)
