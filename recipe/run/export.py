"""Write an engine's weights as a HuggingFace `glm4_moe` folder that stock transformers loads.

DeepSpeed has no 16-bit export for ZeRO-3 with AutoEP. Here the ranks gather one layer after another: each
parameter from its ZeRO partitions, each expert weight from the ranks of rank 0's expert-parallel group.
Rank 0 writes a layer as one safetensors file and forgets it before the next, so that no rank ever holds
more than one layer's full weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, Glm4MoeConfig

from recipe.base.errors import UserError
from recipe.base.output_paths import check_output_folder
from recipe.data.token_folder import tokenizer_facts
from recipe.model import RecipeMoeConfig
from recipe.run.autoep import AutoEPMoELayer


def export_hf(
    engine: deepspeed.DeepSpeedEngine, config: RecipeMoeConfig, tokenizer: Path, output: Path, card: str | None = None
) -> None:
    """Write `output`, which appears only when complete. Called by all ranks together, after `check_exportable`.

    Args:
        card: its README.md.
    """
    partial = _partial(output)
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    units = list(_units(engine.module))
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, (prefix, module) in enumerate(units, start=1):
        tensors = full_tensors(module, prefix)
        if first:
            file = f"model-{number:05d}-of-{len(units):05d}.safetensors"
            save_file(tensors, partial / file, metadata={"format": "pt"})
            (partial / file).chmod(0o644)  # safetensors writes for the owner alone
            weight_map.update(dict.fromkeys(tensors, file))
            total_bytes += sum(t.nbytes for t in tensors.values())
        del tensors
    if first:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        _write_configs(config, tokenizer, partial, next(engine.module.parameters()).dtype)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        os.rename(partial, output)
    dist.barrier()


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def check_exportable(config: RecipeMoeConfig, output: Path) -> None:
    """Refuse what would make the export fail, before anything is gathered.

    Raises:
        UserError: `output` exists or cannot be written, or the model's routing has no equal in `glm4_moe`.
    """
    if output.exists():
        raise UserError(f"--output {output} exists; choose a new folder")
    check_output_folder("--output", _partial(output))
    config.to_glm4_moe()


def full_tensors(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """All parameters and persistent buffers of a module in `glm4_moe` names, whole, on CPU; rank 0 gets them, others {}."""
    tensors: dict[str, torch.Tensor] = {}
    for name, child in module.named_modules(prefix=prefix):
        if isinstance(child, AutoEPMoELayer):
            tensors.update(_expert_tensors(child, name))
    for name, parameter in module.named_parameters(prefix=prefix):
        if ".mlp.experts." not in name:
            with deepspeed.zero.GatheredParameters([parameter], enabled=_partitioned(parameter)):
                if dist.get_rank() == 0:
                    tensors[_hf_name(name)] = parameter.detach().cpu().clone().contiguous()
    if dist.get_rank() == 0:
        for name, buffer in module.named_buffers(prefix=prefix):
            if name.endswith("e_score_correction_bias"):
                tensors[_hf_name(name)] = buffer.detach().float().cpu().clone()
    return tensors


def _units(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The parts that are gathered and written one after another."""
    yield "model.embed_tokens", model.model.embed_tokens
    for number, layer in enumerate(model.model.layers):
        yield f"model.layers.{number}", layer
    yield "model.norm", model.model.norm
    yield "lm_head", model.lm_head


def _expert_tensors(layer: AutoEPMoELayer, name: str) -> dict[str, torch.Tensor]:
    first, experts = dist.get_rank() == 0, layer.experts
    _, width, hidden = getattr(experts.w1, "ds_shape", experts.w1.shape)
    place = {"dtype": experts.w1.dtype, "device": "cpu" if first else "meta"}
    gate_up = torch.empty(layer.num_experts, 2 * width, hidden, **place)
    down = torch.empty(layer.num_experts, hidden, width, **place)
    for weight, target in ((experts.w1, gate_up[:, :width]), (experts.w3, gate_up[:, width:]), (experts.w2, down)):
        _gather_experts(layer, weight, target)
    return {f"{name}.experts.gate_up_proj": gate_up, f"{name}.experts.down_proj": down} if first else {}


def _gather_experts(layer: AutoEPMoELayer, weight: nn.Parameter, target: torch.Tensor) -> None:
    """Fill `target` [E, ...] on rank 0 with one expert weight of all experts, from its expert-parallel group."""
    first = dist.get_rank() == 0
    with deepspeed.zero.GatheredParameters([weight], enabled=_partitioned(weight)):
        local = weight.detach().contiguous()
        if layer.ep_size == 1:
            parts = [local] if first else None
        elif 0 in dist.get_process_group_ranks(layer.ep_group):
            parts = [torch.empty_like(local) for _ in range(layer.ep_size)] if first else None
            dist.gather(local, parts, dst=0, group=layer.ep_group)
        else:
            parts = None
        if parts is not None:
            for rows, part in zip(target.split(layer.num_local_experts), parts, strict=True):
                rows.copy_(part)


def _hf_name(name: str) -> str:
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.e_score", ".mlp.gate.e_score")


def _partitioned(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _write_configs(config: RecipeMoeConfig, tokenizer: Path, folder: Path, dtype: torch.dtype) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if loaded.eos_token_id != (eod_id := tokenizer_facts(tokenizer)["eod_id"]):
        raise UserError(
            f"transformers reads {loaded.eos_token_id} as the eos token of {tokenizer}, and the documents end with {eod_id}; "
            "restore tokenizer_config.json and special_tokens_map.json"
        )
    special = {"eos_token_id": loaded.eos_token_id, "pad_token_id": loaded.pad_token_id}
    hf_config = Glm4MoeConfig(**config.to_glm4_moe(**special, dtype=dtype, architectures=["Glm4MoeForCausalLM"]))
    hf_config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    loaded.save_pretrained(folder)
