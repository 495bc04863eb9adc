"""Which architecture of transformers holds a model of ours, and the config.json that says so.

The interchange layout is one tensor per expert and matrix in the names of `glm4_moe` and `qwen3_moe`
(`model.layers.1.mlp.experts.3.gate_proj.weight`); an architecture may name them otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape
from recipe.base.run_config.routing import Routing

# mixtral's names of an expert's matrices, transformers' MixtralBlockSparseTop2MLP: w2(silu(w1(x)) * w3(x))
MIXTRAL_MATRICES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
EXPERT_BIAS = "e_score_correction_bias"  # of a router: fp32 whatever the model's precision
# An expert's matrix in the interchange layout.
EXPERT_MATRIX = re.compile(
    r"(?P<experts>(?P<layer>.*)\.mlp\.experts)\.(?P<expert>\d+)\.(?P<matrix>(gate|up|down)_proj)\.weight"
)


def is_expert_bias(name: str) -> bool:
    return name.endswith(EXPERT_BIAS)


@dataclass(frozen=True)
class Architecture:
    """An architecture that an exported model may have.

    Args:
        model_type, class_name: in its config.json.
        correction_bias: it has the expert bias (`EXPERT_BIAS`) of a router.
        renamed: from an interchange name to this architecture's.
    """

    model_type: str
    class_name: str
    correction_bias: bool
    renamed: Callable[[str], str] = str

    def export_name(self, name: str) -> str:
        """This architecture's name of a tensor of the interchange layout."""
        return self.renamed(name)


def _mixtral_name(name: str) -> str:
    if parts := EXPERT_MATRIX.fullmatch(name):
        matrix = MIXTRAL_MATRICES[parts["matrix"]]
        return f"{parts['layer']}.block_sparse_moe.experts.{parts['expert']}.{matrix}.weight"
    return name.replace(".mlp.gate.", ".block_sparse_moe.gate.")


GLM4_MOE = Architecture("glm4_moe", "Glm4MoeForCausalLM", correction_bias=True)
QWEN3_MOE = Architecture("qwen3_moe", "Qwen3MoeForCausalLM", correction_bias=False)
MIXTRAL = Architecture("mixtral", "MixtralForCausalLM", correction_bias=False, renamed=_mixtral_name)


def export_architecture(shape: ModelShape) -> Architecture:
    """The architecture that computes what a model of this shape does.

    Sigmoid routing is `glm4_moe`'s, which has all else too. Softmax routing is that of `qwen3_moe`, whose attention has
    QK-norm, and of `mixtral`, whose attention has none.

    Raises:
        UserError: none does; says what in the shape has no place, and what to set instead.
    """
    if shape.scoring_func == "sigmoid":
        return GLM4_MOE
    architecture = QWEN3_MOE if shape.use_qk_norm else MIXTRAL
    if problems := _without_place(shape, architecture):
        raise UserError(
            f"no architecture of transformers has scoring_func softmax with {' and '.join(problems)}; to export as "
            f"{architecture.model_type} change that in the model's config.json, or set scoring_func sigmoid, "
            "which glm4_moe has with all of it"
        )
    return architecture


def _without_place(shape: ModelShape, architecture: Architecture) -> list[str]:
    rotary = shape.rope_parameters.partial_rotary_factor
    problems = [
        (shape.n_shared_experts > 0, f"n_shared_experts {shape.n_shared_experts} (not 0)"),
        (shape.attention_bias, "attention_bias true (not false)"),
        (rotary != 1, f"partial_rotary_factor {rotary:g} (not 1)"),
        (shape.n_group > 1, f"n_group {shape.n_group} (not 1)"),
        (shape.routed_scaling_factor != 1, f"routed_scaling_factor {shape.routed_scaling_factor:g} (not 1)"),
    ]
    if architecture is MIXTRAL:
        problems += [
            (shape.first_k_dense_replace > 0, f"first_k_dense_replace {shape.first_k_dense_replace} (not 0)"),
            (not shape.norm_topk_prob, "norm_topk_prob false (not true) without use_qk_norm"),
        ]
    return [sentence for holds, sentence in problems if holds]


def export_note(shape: ModelShape, routing: Routing) -> str | None:
    """Why what such a run trains cannot be exported, for before it costs anything; None where it can."""
    try:
        architecture = export_architecture(shape)
    except UserError as error:
        return f"this model cannot be exported: {error}"
    if not architecture.correction_bias and routing.trains_bias:
        return (
            f"this model would be exported as {architecture.model_type}, which has no expert bias, and routing.{routing.bias_setting} "
            "trains one: what it computes could not be exported. Set bias_update sign with bias_update_rate 0 (aux_loss_coef balances)"
        )
    return None


def export_config(
    shape: ModelShape,
    *,
    dtype: str,
    max_position_embeddings: int,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """Content of the config.json of an exported model, which transformers 4.57 and 5 read alike.

    Transformers 5 reads `rope_parameters` and `dtype`, 4.57 `rope_theta`, `partial_rotary_factor`, `rope_scaling` and `torch_dtype`.
    All three architectures have YaRN.

    Args:
        dtype: of the weights, such as "bfloat16".

    Raises:
        UserError: no architecture has this shape.
    """
    architecture = export_architecture(shape)
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "num_experts_per_tok", "hidden_act", "rms_norm_eps", "initializer_range", "attention_dropout",
        "tie_word_embeddings",
    )  # fmt: skip
    kind, scaling = shape.rope_parameters.rope_type, shape.rope_parameters.scaling
    rope = {"rope_theta": shape.rope_parameters.rope_theta}
    if architecture is GLM4_MOE:
        rope["partial_rotary_factor"] = shape.rope_parameters.partial_rotary_factor
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **{name: getattr(shape, name) for name in same},
        **_OWN_VALUES[architecture.model_type](shape),
        "max_position_embeddings": max_position_embeddings,
        **rope,
        "rope_scaling": {"rope_type": kind, **scaling} if scaling else None,
        "rope_parameters": {"rope_type": kind, **rope, **scaling},
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        # As save_pretrained writes it: without it 4.57 warns of the tokenizers of some other models.
        "transformers_version": version("transformers"),
    }


def _glm4_moe_values(shape: ModelShape) -> dict[str, Any]:
    same = (
        "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "first_k_dense_replace", "n_group", "topk_group",
        "norm_topk_prob", "routed_scaling_factor", "use_qk_norm", "attention_bias",
    )  # fmt: skip
    # Our checkpoints carry no multi-token-prediction layer.
    return {**{name: getattr(shape, name) for name in same}, "num_nextn_predict_layers": 0}


def _qwen3_moe_values(shape: ModelShape) -> dict[str, Any]:
    return {
        "moe_intermediate_size": shape.moe_intermediate_size,
        "num_experts": shape.n_routed_experts,
        "norm_topk_prob": shape.norm_topk_prob,
        "mlp_only_layers": list(range(shape.first_k_dense_replace)),
        "decoder_sparse_step": 1,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
    }


def _mixtral_values(shape: ModelShape) -> dict[str, Any]:
    return {
        "intermediate_size": shape.moe_intermediate_size,  # there are no dense layers
        "num_local_experts": shape.n_routed_experts,
        "sliding_window": None,
    }


_OWN_VALUES: dict[str, Callable[[ModelShape], dict[str, Any]]] = {
    "glm4_moe": _glm4_moe_values,
    "qwen3_moe": _qwen3_moe_values,
    "mixtral": _mixtral_values,
}
