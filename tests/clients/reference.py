"""What an exported folder should give, by the class that was trained: its weights and config.json read here, by hand.

Nothing of the recipe's export or import is used, so that a mistake there does not check itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recipe.base.model_shape import ModelShape
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM

# of an expert's matrices: ours, and mixtral's
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def shape_of(config: dict[str, Any]) -> ModelShape:
    """Our shape by the config.json of glm4_moe, qwen3_moe or mixtral."""
    names = ModelShape.model_fields.keys() - {"model_type", "scoring_func"}
    values = {name: config[name] for name in names if name in config}
    if config["model_type"] != "glm4_moe":
        values.update(scoring_func="softmax", n_shared_experts=0, use_qk_norm=config["model_type"] == "qwen3_moe")
        values.update(n_routed_experts=config.get("num_experts", config.get("num_local_experts")))
        values.update(first_k_dense_replace=len(config.get("mlp_only_layers", [])))
    if config["model_type"] == "mixtral":
        values.update(moe_intermediate_size=config["intermediate_size"], norm_topk_prob=True)
    return ModelShape(model_type="recipe_moe", **values)


def reference_model(folder: Path) -> RecipeMoeForCausalLM:
    """Our model in fp32 with the folder's weights; an AssertionError where a weight is missing or has no use."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape, weights = shape_of(config), stored(folder)
    if config["model_type"] == "mixtral":
        weights = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in weights.items()}
    model = RecipeMoeForCausalLM(RecipeMoeConfig.from_shape(shape)).float().eval()
    of_mixtral = config["model_type"] == "mixtral"
    for layer in range(shape.first_k_dense_replace, shape.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts"
        stack = {
            matrix: torch.stack(
                [
                    weights.pop(f"{experts}.{expert}.{MIXTRAL[matrix] if of_mixtral else matrix}.weight")
                    for expert in range(shape.n_routed_experts)
                ]
            )
            for matrix in MIXTRAL
        }
        weights[f"{experts}.gate_up_proj"] = torch.cat((stack["gate_proj"], stack["up_proj"]), dim=1)
        weights[f"{experts}.down_proj"] = stack["down_proj"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # softmax routing has no correction bias in its architectures: ours starts at zero
    missing = [name for name in missing if shape.scoring_func == "sigmoid" or "e_score_correction_bias" not in name]
    # without shared experts glm4_moe has them with a width of 0
    unexpected = [name for name in unexpected if weights[name].numel()]
    assert (missing, unexpected) == ([], [])
    return model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name, in fp32."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return tensors


@torch.no_grad()
def log_probabilities(model: Any, tokens: list[list[int]]) -> torch.Tensor:
    """[B, S, V] in fp32."""
    return torch.stack([model(torch.tensor([row])).logits[0].float().log_softmax(-1) for row in tokens])


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int, eos_token_id: int) -> list[int]:
    """The likeliest tokens, one after another, every step from the start: nothing of a cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == eos_token_id:
            break
    return tokens[len(prompt) :]


@torch.no_grad()
def loss_of(model: Any, rows: list[list[int]], labels: list[list[int]]) -> float:
    """Mean loss of the tokens that have a label, as trainers of others count it."""
    total, count = 0.0, 0
    for tokens, targets in zip(rows, labels, strict=True):
        scores = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
        for position, target in enumerate(targets[1:]):
            if target >= 0:
                total, count = total - float(scores[position, target]), count + 1
    return total / count
