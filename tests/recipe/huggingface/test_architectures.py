"""Which architecture holds a model of ours, and that transformers reads its config.json as it is meant."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.routing import Routing
from recipe.huggingface.architectures import export_architecture, export_config, export_note

SHAPE = ModelShape(
    model_type="recipe_moe", vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
    first_k_dense_replace=1, num_attention_heads=4, num_key_value_heads=2, head_dim=6, n_routed_experts=4, n_shared_experts=0,
    num_experts_per_tok=2, max_position_embeddings=64, rope_parameters={"rope_theta": 123.0},
)  # fmt: skip
SOFTMAX = {"scoring_func": "softmax"}
PLAIN = {**SOFTMAX, "use_qk_norm": False, "first_k_dense_replace": 0}


def shaped(**values) -> ModelShape:
    return ModelShape(**{**SHAPE.model_dump(), **values})


@pytest.mark.parametrize(
    ("values", "model_type", "read"),
    [
        ({"n_shared_experts": 2, "attention_bias": True, "routed_scaling_factor": 2.5}, "glm4_moe",
         {"n_routed_experts": 4, "n_shared_experts": 2, "attention_bias": True, "routed_scaling_factor": 2.5, "use_qk_norm": True,
          "num_nextn_predict_layers": 0, "first_k_dense_replace": 1}),
        ({**SOFTMAX, "first_k_dense_replace": 2, "norm_topk_prob": False}, "qwen3_moe",
         {"num_experts": 4, "mlp_only_layers": [0, 1], "norm_topk_prob": False, "moe_intermediate_size": 16, "sliding_window": None}),
        (PLAIN, "mixtral", {"num_local_experts": 4, "intermediate_size": 16, "sliding_window": None}),
    ],
)  # fmt: skip
def test_transformers_reads_the_shape_in_the_config(values, model_type, read, tmp_path):
    shape = shaped(**values)
    config = export_config(
        shape, dtype="bfloat16", max_position_embeddings=48, bos_token_id=None, eos_token_id=5, pad_token_id=6
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    same = ("hidden_size", "head_dim", "num_key_value_heads", "num_experts_per_tok", "rms_norm_eps")
    read = {**read, **{name: getattr(shape, name) for name in same}, "max_position_embeddings": 48, "eos_token_id": 5}
    assert {name: getattr(loaded, name) for name in read} == read
    assert (loaded.model_type, loaded.rope_parameters["rope_theta"], str(loaded.dtype)) == (model_type, 123.0, "torch.bfloat16")  # fmt: skip
    assert export_architecture(shape).model_type == model_type
    assert config["rope_theta"] == 123.0  # where transformers 4.57 looks


@pytest.mark.parametrize("layout", ["v5", "v4"])
@pytest.mark.parametrize("values", [{"n_shared_experts": 1}, SOFTMAX, PLAIN], ids=["glm4_moe", "qwen3_moe", "mixtral"])
def test_transformers_reads_yarn_by_the_keys_of_4_and_of_5(values, layout, tmp_path):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
    rope = {"rope_theta": 123.0, "partial_rotary_factor": 1.0 if values else 0.5, "rope_type": "yarn", **scaling}
    config = export_config(shaped(**values, rope_parameters=rope), dtype="bfloat16", max_position_embeddings=64)
    assert config["rope_scaling"] == {"rope_type": "yarn", **scaling}  # all that 4.57 takes without a warning
    del config["rope_parameters" if layout == "v4" else "rope_scaling"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {"partial_rotary_factor": 1.0, **loaded.rope_parameters} == rope


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({**SOFTMAX, "n_shared_experts": 1}, r"n_shared_experts 1 \(not 0\); to export as qwen3_moe"),
        ({**SOFTMAX, "attention_bias": True}, r"attention_bias true \(not false\)"),
        ({**SOFTMAX, "n_group": 2, "routed_scaling_factor": 2.5}, r"n_group 2 \(not 1\) and routed_scaling_factor 2.5"),
        ({**SOFTMAX, "rope_parameters": {"partial_rotary_factor": 1 / 3}}, r"partial_rotary_factor 0.333333"),
        ({**PLAIN, "first_k_dense_replace": 1}, r"first_k_dense_replace 1 \(not 0\); to export as mixtral"),
        ({**PLAIN, "norm_topk_prob": False}, r"norm_topk_prob false \(not true\)"),
    ],
)
def test_a_shape_without_an_architecture_is_told_what_has_no_place(values, sentence):
    with pytest.raises(UserError, match=f"{sentence}.*or set scoring_func sigmoid"):
        export_architecture(shaped(**values))


def test_mixtral_has_names_of_its_own():
    mixtral, glm = export_architecture(shaped(**PLAIN)), export_architecture(SHAPE)
    layer = "model.layers.1"
    names = {
        f"{layer}.mlp.experts.3.gate_proj.weight": f"{layer}.block_sparse_moe.experts.3.w1.weight",
        f"{layer}.mlp.experts.3.up_proj.weight": f"{layer}.block_sparse_moe.experts.3.w3.weight",
        f"{layer}.mlp.experts.3.down_proj.weight": f"{layer}.block_sparse_moe.experts.3.w2.weight",
        f"{layer}.mlp.gate.weight": f"{layer}.block_sparse_moe.gate.weight",
        f"{layer}.self_attn.q_proj.weight": f"{layer}.self_attn.q_proj.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert {name: mixtral.export_name(name) for name in names} == names
    assert all(glm.export_name(name) == name for name in names)
    assert (mixtral.correction_bias, glm.correction_bias) == (False, True)


@pytest.mark.parametrize(
    ("values", "routing", "note"),
    [
        ({}, {}, None),
        (SOFTMAX, {"bias_update_rate": 0.0}, None),
        (SOFTMAX, {"bias_freeze_share": 1.0}, None),  # it never moves
        (SOFTMAX, {}, "exported as qwen3_moe, which has no expert bias, and routing.bias_update_rate 0.001"),
        (PLAIN, {}, "exported as mixtral, which has no expert bias"),
        (
            {**SOFTMAX, "n_shared_experts": 1},
            {"bias_update_rate": 0.0},
            "this model cannot be exported: no architecture",
        ),
    ],
)
def test_what_cannot_be_exported_is_said_before_it_is_trained(values, routing, note):
    message = export_note(shaped(**values), Routing(**routing))
    assert message is None if note is None else note in message
