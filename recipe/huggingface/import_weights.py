"""Initial weights from a HuggingFace folder: a `glm4_moe` model of the same shape, or a dense one whose MLPs become experts.

Weights are read one tensor at a time by rank 0, as the engine is built, so no rank ever holds the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import MODEL_TYPE, ModelShape
from recipe.base.strict import load_json

Weights = Callable[[str], torch.Tensor]  # a parameter's name -> its values
# What two models of one shape share that decides what a weight means; the rest of a config.json is about other things.
_SAME = sorted(set(ModelShape.model_fields) - {"model_type", "scoring_func", "initializer_range", "attention_dropout", "max_position_embeddings"})  # fmt: skip
_OF_EXPERTS = {"first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
               "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"}  # fmt: skip


class SafetensorsFolder:
    """Tensors of a folder by their names.

    Raises:
        UserError: it holds no safetensors.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            self._file_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif single.exists():
            with safe_open(single, "pt") as handle:
                self._file_of = dict.fromkeys(handle.keys(), single.name)
        else:
            raise UserError(f"--model {folder} holds no model.safetensors; give a HuggingFace folder in that format")
        missing = sorted({file for file in self._file_of.values() if not (folder / file).exists()})
        if missing:
            raise UserError(f"--model {folder} lacks {missing[0]}; fetch the whole folder")
        self.names = set(self._file_of)

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._file_of:
            raise UserError(
                f"--model {self.folder} has no tensor '{name}'; it is another model than its config.json says"
            )
        with safe_open(self.folder / self._file_of[name], "pt") as handle:
            return handle.get_tensor(name)


def same_model(folder: Path, shape: ModelShape) -> Weights:
    """The weights of a `glm4_moe` folder of the same shape, experts fused or one by one.

    Raises:
        UserError: another architecture, another shape, or no weights.
    """
    config = _config_of(folder, {"glm4_moe"})
    _check_equal(folder, config, shape, set(_SAME))
    if shape.scoring_func != "sigmoid":
        raise UserError("glm4_moe routes by sigmoid; set scoring_func sigmoid in the model's config.json")
    tensors = SafetensorsFolder(folder)

    def weights(name: str) -> torch.Tensor:
        if name in tensors.names or ".mlp.experts." not in name:
            return tensors(name)
        prefix, kind = name.rsplit(".", 1)
        each = [f"{prefix}.{expert}" for expert in range(shape.n_routed_experts)]
        if kind == "down_proj":
            return torch.stack([tensors(f"{one}.down_proj.weight") for one in each])
        return torch.stack(
            [torch.cat([tensors(f"{one}.{half}_proj.weight") for half in ("gate", "up")]) for one in each]
        )

    return weights


def upcycled(folder: Path, shape: ModelShape, initial: Callable[[str, torch.Tensor], None]) -> Weights:
    """The weights of a MoE that computes what a dense `glm4_moe` model computes (every layer's MLP dense).

    As sparse upcycling (arXiv 2212.05055) with the virtual groups of NVIDIA's (arXiv 2410.07524, section 3.2): the MLP is cut
    along its width. The shared experts take the first cuts, and the K experts that a token gets take the others: experts
    are copies in groups of K, whose router rows are equal at the start, so that a token chooses a group as a whole. Its
    scores are then equal, 1/K each, for which down_proj makes up.

    Args:
        initial: fills a new tensor of a parameter's name with random values; for the routers.

    Raises:
        UserError: not dense, or a shape that cannot be cut so.
    """
    config = _config_of(folder, {"glm4_moe"})
    if config.get("first_k_dense_replace", 0) < config["num_hidden_layers"]:
        raise UserError(f"--upcycle is for a dense model, but {folder} has experts; leave it out")
    width, chosen, experts = shape.moe_intermediate_size, shape.num_experts_per_tok, shape.n_routed_experts
    shared, dense = shape.n_shared_experts * width, config["intermediate_size"]
    found = []
    if dense != shared + chosen * width:
        found.append(
            f"the dense MLP is {dense} wide, and shared and chosen experts together {shared + chosen * width}; make them equal"
        )
    if experts % chosen:
        found.append(f"n_routed_experts {experts} is no multiple of num_experts_per_tok {chosen}; make it one")
    if not (shape.norm_topk_prob and shape.scoring_func == "sigmoid" and shape.n_group == 1):
        found.append("upcycling needs norm_topk_prob, scoring_func sigmoid and n_group 1")
    if found:
        raise ConfigError(f"{folder} to the run's model", found)
    _check_equal(folder, config, shape, set(_SAME) - _OF_EXPERTS)
    tensors = SafetensorsFolder(folder)

    def weights(name: str) -> torch.Tensor:
        if name in tensors.names:
            return tensors(name)
        layer, kind = name.split(".mlp.")
        gate, up, down = (tensors(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        if kind == "gate.weight":
            rows = torch.empty(experts, gate.shape[1])
            initial(name, rows)
            return rows[::chosen].repeat_interleave(chosen, dim=0)
        if kind == "gate.e_score_correction_bias":
            return torch.zeros(experts)
        if kind.startswith("shared_experts."):
            part = {"gate_proj": gate, "up_proj": up, "down_proj": down}[kind.split(".")[1]]
            return part[:, :shared] if part is down else part[:shared]
        cuts = [slice(shared + cut * width, shared + (cut + 1) * width) for cut in range(chosen)]
        if kind == "experts.gate_up_proj":
            group = torch.stack([torch.cat([gate[cut], up[cut]]) for cut in cuts])
        else:
            group = torch.stack([down[:, cut] for cut in cuts]) * (chosen / shape.routed_scaling_factor)
        return group.repeat(experts // chosen, 1, 1)

    return weights


def _config_of(folder: Path, types: set[str]) -> dict[str, Any]:
    config = load_json(folder / "config.json")
    if config.get("model_type") not in types:
        raise UserError(f"{folder} is a {config.get('model_type')}, not {' or '.join(sorted(types))}")
    return config


def _check_equal(folder: Path, config: dict[str, Any], shape: ModelShape, names: set[str]) -> None:
    ours = shape.model_dump()
    different = []
    for name in sorted(names):
        theirs = _rope(config) if name == "rope_parameters" else config.get(name, ModelShape.model_fields[name].default)
        if theirs != ours[name]:
            different.append(
                f"{name} is {theirs} there and {ours[name]} in the run's model; take theirs into its config.json"
            )
    if different:
        raise ConfigError(f"{folder}/config.json", different)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters as transformers 5 writes them, or from the older fields."""
    found = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10_000.0),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
    }
    return {"rope_type": "default", "partial_rotary_factor": 1.0, **found}


def shape_values(folder: Path) -> dict[str, Any]:
    """What a model's config.json must hold for the weights of a `glm4_moe` folder."""
    config = _config_of(folder, {"glm4_moe"})
    values = {name: config[name] for name in ModelShape.model_fields if name in config}
    return {**values, "model_type": MODEL_TYPE, "rope_parameters": _rope(config), "attention_dropout": 0.0}
