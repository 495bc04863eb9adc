"""What a HuggingFace folder's config.json says, as a shape of ours, or why it cannot.

The config is read by its own class in transformers, so that a key it lacks is what transformers takes it for, and files
of transformers 4 and 5 mean the same.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    Glm4MoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import MODEL_TYPE, RopeParameters
from recipe.base.strict import load_json

CONFIG_CLASSES: dict[str, type[PreTrainedConfig]] = {
    "glm4_moe": Glm4MoeConfig,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "mixtral": MixtralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
}
CAN_BE_READ = "models of glm4_moe, qwen3_moe and mixtral can, and with --upcycle dense ones of glm4_moe, llama, mistral, qwen2 and qwen3"  # fmt: skip
# Architectures that people have, and the part of each that our decoder does not compute.
MISFITS = {
    "bailing_moe": "one matrix for query, key and value, and code of its own",
    "deepseek_v2": "latent attention",
    "deepseek_v3": "latent attention",
    "ernie4_5_moe": "rotary embedding of interleaved halves",
    "gemma2": "norms after each block and capped logits",
    "gemma3_text": "norms after each block and attention windows",
    "glm4": "norms after each block",
    "gpt_oss": "attention sinks and experts with biases",
    "granitemoe": "multipliers of the residual stream, attention and logits",
    "olmoe": "QK-norm over all heads together",
    "phi3": "one matrix for query, key and value",
    "phimoe": "LayerNorm, and routing by SparseMixer",
    "qwen2_moe": "shared expert with a gate of its own",
    "qwen3_next": "linear attention",
}
_QK_NORM = {"qwen3", "qwen3_moe"}  # of each head, always
_QKV_BIAS = {"qwen2"}  # always
_WINDOWS_BY_LAYER = {"qwen2", "qwen3"}  # the others have a window in all layers or in none
_MOST_LAYERS = 10_000  # lists of them are made, here and in transformers; no model has as many
_LARGEST = 2**31 - 1  # size of a matrix
_COUNTS = {  # whole numbers that are computed with before they are those of a shape: the least and the most
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"), (1, _LARGEST)),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "max_position_embeddings"), (1, _LARGEST)),
    "num_hidden_layers": (1, _MOST_LAYERS),
    "first_k_dense_replace": (0, _MOST_LAYERS),
    "num_nextn_predict_layers": (0, _MOST_LAYERS),
    "num_mtp_layers": (0, _MOST_LAYERS),
}
_OTHER_NAMES = [
    ("num_experts", "num_local_experts"),
    ("n_routed_experts", "num_local_experts"),
    ("num_nextn_predict_layers", "num_mtp_layers"),
]


@dataclass(frozen=True)
class SourceConfig:
    """A model that a run can begin from.

    Args:
        values: of a `ModelShape`; of a dense model without those of its experts.
        tied: lm_head is the embedding.
        mtp_layers: multi-token-prediction layers that its files may hold after the decoder's.
    """

    folder: Path
    model_type: str
    values: dict[str, Any]
    tied: bool
    mtp_layers: int

    @property
    def is_dense(self) -> bool:
        return "n_routed_experts" not in self.values


def read_source_config(folder: Path) -> SourceConfig:
    """What the model in a folder is.

    Raises:
        UserError: with every part of it that our decoder does not compute.
    """
    path = folder / "config.json"
    raw = load_json(_config_file(folder))
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str) or not model_type:
        raise UserError(f"{path} names no model_type; give a folder that save_pretrained of transformers has written")
    if model_type not in CONFIG_CLASSES:
        misfit = MISFITS.get(model_type)
        why = f", with {misfit}, which the run's model does not have" if misfit else ""
        raise UserError(f"{folder} is a {model_type}{why}; it cannot be imported: {CAN_BE_READ}")
    if problems := [*_count_problems(raw), *_contradictions(raw), *_key_problems(raw)]:
        raise ConfigError(path, problems)
    try:
        config = CONFIG_CLASSES[model_type].from_dict(deepcopy(raw))
    except Exception as error:  # whatever a config class makes of a value it cannot use
        raise UserError(f"{path} is no config that transformers reads: {' '.join(str(error).split())}") from None
    if problems := [*_problems(raw, config), *_attention_problems(raw, config), *_layer_problems(config)]:
        raise ConfigError(path, problems)
    return SourceConfig(
        folder,
        model_type,
        {**_decoder_values(config), **_expert_values(config)},
        bool(config.tie_word_embeddings),
        getattr(config, "num_nextn_predict_layers", None) or 0,
    )


def _config_file(folder: Path) -> Path:
    """The config.json of a folder that the user names.

    Raises:
        UserError: there is none; says what was named instead.
    """
    if folder.is_file():
        raise UserError(f"--model {folder} is a file; give the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"--model {folder} is no folder; download the model first and give its folder")
    if not (folder / "config.json").exists():
        raise UserError(f"--model {folder} holds no config.json; give the folder of a HuggingFace model")
    return folder / "config.json"


def _count_problems(raw: dict[str, Any]) -> list[str]:
    """Numbers that transformers takes as they are, and that no model has; null is what its class takes it for."""
    return [
        f"{name} is {json.dumps(raw[name])[:40]}; it must be a whole number from {least:,} to {most:,}"
        for name, (least, most) in _COUNTS.items()
        if raw.get(name) is not None and not (type(raw[name]) is int and least <= raw[name] <= most)
    ]


def _contradictions(raw: dict[str, Any]) -> list[str]:
    """Keys of transformers 4 and 5 for one thing, with two values."""
    parts = {part: raw.get(part) or {} for part in ("rope_parameters", "rope_scaling")}
    if not all(isinstance(rope, dict) for rope in parts.values()):
        return ["rope_parameters and rope_scaling must be mappings"]
    if any(isinstance(value, dict) for rope in parts.values() for value in rope.values()):
        return ["rope_parameters differ from layer to layer; the run's model has the same in all"]
    pairs = [
        (f"{part}.{name}", rope.get(name), name, raw.get(name))
        for part, rope in parts.items()
        for name in ("rope_theta", "partial_rotary_factor")
    ]
    pairs += [(name, raw.get(name), other, raw.get(other)) for name, other in _OTHER_NAMES]
    if all(parts.values()):
        newer, older = ({"rope_type": rope.get("type"), **rope} for rope in parts.values())
        # Those of transformers 4 stand beside its rope_scaling, and 5 has them among rope_parameters; all else both have.
        own = {"rope_theta", "partial_rotary_factor"}
        pairs += [(f"rope_parameters.{n}", newer.get(n), f"rope_scaling.{n}", older.get(n)) for n in sorted(own)]
        if {**newer, **dict.fromkeys(own)} != {**older, **dict.fromkeys(own)}:
            pairs.append(("rope_parameters", parts["rope_parameters"], "rope_scaling", parts["rope_scaling"]))
    return [
        f"{name} is {value} and {other} is {also}, which are one thing; remove the wrong one"
        for name, value, other, also in pairs
        if value is not None and also is not None and value != also
    ]


def _key_problems(raw: dict[str, Any]) -> list[str]:
    """Keys that make another model of any architecture."""
    problems = []
    for name in ("quantization_config", "compression_config"):
        if method := raw.get(name):
            kind = method.get("quant_method", "quantized") if isinstance(method, dict) else method
            problems.append(f"{name} says the weights are {kind}; give the model in bfloat16, float16 or float32")
    if raw.get("auto_map"):
        problems.append(
            "auto_map says the model has code of its own; give one that transformers' own class computes, without it"
        )
    if raw.get("is_causal", True) is not True or raw.get("use_bidirectional_attention"):
        problems.append("its attention is not causal; the run's model attends to what came before alone")
    if raw.get("per_layer_config"):
        problems.append("per_layer_config makes layers differ; those of the run's model are alike")
    return problems


def _problems(raw: dict[str, Any], config: Any) -> list[str]:
    problems = []
    if config.hidden_act != "silu":
        problems.append(f"hidden_act is {config.hidden_act}; the run's model has silu alone")
    if getattr(config, "mlp_bias", False):
        problems.append("mlp_bias is true; MLPs of the run's model have no biases")
    if raw.get("scoring_func", "sigmoid") != "sigmoid" and config.model_type == "glm4_moe":
        problems.append(f"scoring_func is {raw['scoring_func']}, and glm4_moe routes by sigmoid; remove the wrong one")
    return problems


def _attention_problems(raw: dict[str, Any], config: Any) -> list[str]:
    problems = []
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "yarn"):
        problems.append(f"rope_scaling is {kind}; the run's model has rotary positions as they are, or scaled by yarn")
    rotary = config.rope_parameters.get("partial_rotary_factor", 1.0)
    if rotary != 1 and config.model_type != "glm4_moe":
        problems.append(f"partial_rotary_factor is {rotary}, and a {config.model_type} rotates whole heads; remove it")
    if getattr(config, "attention_bias", False) and config.model_type != "glm4_moe":
        problems.append(
            f"attention_bias is true; in a {config.model_type} o_proj has one too, which the run's model does not have"
        )
    kinds, window = set(getattr(config, "layer_types", None) or ()), getattr(config, "sliding_window", None)
    problems += [
        f"layer_types has {kind}; the run's model has full attention in every layer"
        for kind in sorted(kinds - {"full_attention", "sliding_attention"})
    ]
    windows = "sliding_attention" in kinds if config.model_type in _WINDOWS_BY_LAYER else window is not None
    if windows and (type(window) is not int or window < config.max_position_embeddings):
        problems.append(
            f"sliding_window is {window}; the run's model attends to all that came before. To begin from a model with a window, "
            "set max_position_embeddings to at most its size in a copy of that config.json"
        )
    return problems


def _layer_problems(config: Any) -> list[str]:
    problems = []
    if (step := getattr(config, "decoder_sparse_step", 1)) != 1:
        problems.append(
            f"decoder_sparse_step is {step}; the run's model has experts in every layer after the dense ones"
        )
    dense = _dense_layers(config)
    if dense != set(range(len(dense))):
        problems.append(f"mlp_only_layers is {config.mlp_only_layers}; dense layers of the run's model are its first")
    return problems


def _dense_layers(config: Any) -> set[int]:
    layers = range(config.num_hidden_layers)
    if config.model_type == "glm4_moe":
        return set(layers[: config.first_k_dense_replace])
    if config.model_type == "qwen3_moe":
        return set(layers) & set(config.mlp_only_layers)
    return set() if config.model_type == "mixtral" else set(layers)


def _decoder_values(config: Any) -> dict[str, Any]:
    """All of a shape but its experts."""
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "rms_norm_eps", "max_position_embeddings", "initializer_range",
    )  # fmt: skip
    model_type = config.model_type
    return {
        "model_type": MODEL_TYPE,
        **{name: getattr(config, name) for name in same},
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "use_qk_norm": config.use_qk_norm if model_type == "glm4_moe" else model_type in _QK_NORM,
        "attention_bias": config.attention_bias if model_type == "glm4_moe" else model_type in _QKV_BIAS,
        "attention_dropout": 0.0,
        "rope_parameters": _rope_values(config.rope_parameters),
        "tie_word_embeddings": False,
    }


def _rope_values(rope: dict[str, Any]) -> dict[str, Any]:
    """Those of `RopeParameters` that a config gives; 0 is as good as none to transformers, but for `truncate`."""
    values = {
        "rope_type": rope.get("rope_type", "default"),
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
    }
    if values["rope_type"] == "default":
        return values
    if "truncate" in rope:
        values["truncate"] = bool(rope["truncate"])  # null is false to transformers, where nothing at all is true
    others = RopeParameters.model_fields.keys() - values.keys()
    return values | {name: rope[name] for name in sorted(others) if rope.get(name)}


def _expert_values(config: Any) -> dict[str, Any]:
    """Those of the experts; none of a dense model."""
    if len(_dense_layers(config)) == config.num_hidden_layers:
        return {}
    if config.model_type == "glm4_moe":
        same = (
            "first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
            "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor",
        )  # fmt: skip
        return {**{name: getattr(config, name) for name in same}, "scoring_func": "sigmoid"}
    is_mixtral = config.model_type == "mixtral"
    return {
        "first_k_dense_replace": len(_dense_layers(config)),
        "moe_intermediate_size": config.intermediate_size if is_mixtral else config.moe_intermediate_size,
        "n_routed_experts": config.num_local_experts if is_mixtral else config.num_experts,
        "n_shared_experts": 0,
        "num_experts_per_tok": config.num_experts_per_tok,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True if is_mixtral else config.norm_topk_prob,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
    }
