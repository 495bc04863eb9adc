"""A literal, complete ds_config for a model on a number of GPUs: the planner's choices written as DeepSpeed reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from recipe.base.ds_config import DsConfig
from recipe.base.model_shape import ModelShape
from recipe.base.strict import strict_model
from recipe.planner.parameters import decoder

NO_LIMIT = 10**12  # elements, more than any model has


def ds_config_for(
    shape: ModelShape, gpus: int, *, stage: int, ep_size: int, micro_batch: int, accumulation: int, bf16: bool = True,
    persist: bool = False, prefetch_layers: float = 1.0, keep_weights: bool = False, kept_gib: float = 0.0,
    exchange_parts: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The JSON of one choice.

    Bounds of ZeRO-3 follow the size of a layer as a rank holds it: prefetch the next one, keep a layer from its
    recomputation to the end of its backward pass, hold two and what is prefetched.

    Args:
        persist: norms and routers stay gathered.
        prefetch_layers: how many layers' parameters are asked for ahead.
        keep_weights: all weights stay gathered from the forward to the backward pass of a micro-batch.
        kept_gib: of results that layers keep under selective recompute.
        exchange_parts: that the tokens of an MoE layer are divided into.
    """
    layer = _rounded(_largest_layer(shape, ep_size))
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": bf16,
        "reduce_scatter": True,
        "reduce_bucket_size": layer,
    }
    if stage == 3:
        zero |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": round(prefetch_layers * layer),
            "stage3_param_persistence_threshold": _persisted(shape) if persist else 0,
            "stage3_max_live_parameters": NO_LIMIT if keep_weights else round((2 + prefetch_layers) * layer),
            "stage3_max_reuse_distance": NO_LIMIT if keep_weights else 2 * layer,
        }
    else:
        zero |= {"allgather_partitions": True, "allgather_bucket_size": layer}
    config: dict[str, Any] = {
        "train_batch_size": gpus * micro_batch * accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
    }
    if bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config | {
        "zero_optimization": zero,
        "expert_parallel": {
            "enabled": True,
            "autoep_size": ep_size,
            "preset_model": "deepseek_v3",
            "use_grouped_mm": True,
        },
        "recipe": {"kept_gib": kept_gib, "exchange_parts": exchange_parts},
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def parsed(config: dict[str, Any]) -> DsConfig:
    return strict_model(DsConfig, config, "planned ds_config")


def text_of(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2) + "\n"


def write(config: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(config), encoding="utf-8")


def _largest_layer(shape: ModelShape, ep_size: int) -> int:
    return max(sum(p.numel for m in layer for p in m.parameters) for layer in decoder(shape, ep_size).layers)


def _persisted(shape: ModelShape) -> int:
    """Norms and routers."""
    return max(shape.n_routed_experts * shape.hidden_size, shape.hidden_size)


def _rounded(numel: int) -> int:
    """Up to two digits."""
    unit = 10 ** max(0, int(math.log10(numel)) - 1)
    return -(-numel // unit) * unit
