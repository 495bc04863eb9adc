"""An exported model in stock transformers on a GPU: the same logits, and the same tokens generated with the cache."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils import groups
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM

from recipe.base.model_shape import ModelShape
from recipe.checkpoints.export import Export, export_hf
from recipe.huggingface.tokenizer_folder import write_tokenizer_config
from recipe.model import modeling
from tests.gpu.numbers import FP32, after_roundings, relative_error
from tests.gpu.test_model import FORWARD, batch_of, pair
from tests.recipe.checkpoints.test_export_architectures import Layer

SOFTMAX = {
    "scoring_func": "softmax",
    "n_shared_experts": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
LARGE = {"initializer_range": 0.1}  # so that tokens and experts are far apart
CASES = {"glm4_moe-fp32": (torch.float32, {}, "Glm4MoeForCausalLM"), "glm4_moe-bf16": (torch.bfloat16, {}, "Glm4MoeForCausalLM"),
         "qwen3_moe-fp32": (torch.float32, SOFTMAX, "Qwen3MoeForCausalLM")}  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, "a")).save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder, {"eos_token": "</s>"})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_stock_transformers_computes_what_the_model_does(case, device, small, measured, process_group, tokenizer, tmp_path, monkeypatch):  # fmt: skip
    """Stock transformers loads the export onto the device and returns the model's logits, and generates the same tokens.

    Logits to 5e-5 in fp32 and 2.7% in bf16; tokens with its cache, in fp32, are those that whole passes of the model choose.
    """
    dtype, changes, expected = CASES[case]
    monkeypatch.setattr(groups, "_get_expert_data_parallel_rank", lambda name: 0)
    _, model = pair(small, device, dtype, **LARGE, **changes)
    if expected == "Qwen3MoeForCausalLM":
        for module in model.modules():
            if isinstance(module, modeling.Router):
                module.e_score_correction_bias.zero_()  # which it has no place for
    tokens = batch_of(small)[0].to(device)
    with torch.no_grad():
        logits = model.eval()(tokens).logits
        chosen = tokens[:1, :5]
        for _ in range(8):
            chosen = torch.cat((chosen, model(chosen).logits[:, -1:].argmax(dim=-1)), dim=1)
    shape = ModelShape(**{name: getattr(model.config, name) for name in ModelShape.model_fields})
    for layer in model.model.layers[shape.first_k_dense_replace :]:
        layer.mlp = Layer(layer.mlp)
    engine = SimpleNamespace(module=model, device=device)
    export_hf(engine, Export(tmp_path / "export", shape, tokenizer, max_position_embeddings=1024))
    straight = find_spec("accelerate") is not None  # without it transformers loads on the host alone
    placed = {"device_map": {"": device}} if straight else {}
    stock, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", dtype="auto", output_loading_info=True, **placed
    )
    stock.to(device)
    measured["loaded"] = "straight onto the device" if straight else "through the host, without accelerate"
    assert type(stock).__name__ == expected
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {parameter.device.type for parameter in stock.parameters()} == {device.type}
    assert stock.lm_head.weight.dtype == dtype
    with torch.no_grad():
        theirs = stock.eval()(tokens).logits
    # A token that a rounding sends to another expert has other logits: in bf16 the median token counts.
    of_tokens = (theirs.double() - logits.double()).norm(dim=-1) / logits.double().norm(dim=-1)
    measured.update({"relative error": relative_error(theirs, logits), "median token's": of_tokens.median().item()})
    if dtype == torch.bfloat16:
        assert measured["median token's"] <= after_roundings(2 * FORWARD)  # two results that are rounded
        return
    assert measured["relative error"] <= FP32
    generated = stock.generate(
        chosen[:, :5],
        attention_mask=torch.ones_like(chosen[:, :5]),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
    )
    assert generated.tolist() == chosen.tolist()
