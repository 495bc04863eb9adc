"""Small models of a large one's family: every width divided alike, depth with it, experts and top-k as they are."""

from __future__ import annotations

import math

from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape

MULTIPLE = 8  # of widths: 16 bytes of bf16, which grouped matmuls ask for


def member(target: ModelShape, width: int) -> ModelShape:
    """The family's model of a hidden size.

    The ratio of width to depth stays, down to one MoE layer, and so do the share of key and value heads, the active share of
    the experts and their width over the model's. Initial weights are larger by the square root of the division, so that
    activations keep their size.

    Raises:
        UserError: a hidden size that is no multiple of 8, or above the target's.
    """
    if width % MULTIPLE or not 0 < width <= target.hidden_size:
        raise UserError(
            f"the width {width} is no multiple of {MULTIPLE} up to the target's hidden_size {target.hidden_size}; change it"
        )
    ratio = width / target.hidden_size
    queries_per_key = target.num_attention_heads // target.num_key_value_heads
    key_heads = max(1, round(target.num_key_value_heads * ratio))
    heads = key_heads * queries_per_key
    attention_width = target.num_attention_heads * target.head_dim * ratio
    return target.model_copy(
        update={
            "hidden_size": width,
            "intermediate_size": _rounded(target.intermediate_size * ratio),
            "moe_intermediate_size": _rounded(target.moe_intermediate_size * ratio),
            "num_hidden_layers": max(target.first_k_dense_replace + 1, round(target.num_hidden_layers * ratio)),
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": _rounded(attention_width / heads),
            "initializer_range": round(target.initializer_range / math.sqrt(ratio), 5),
        }
    )


def _rounded(width: float) -> int:
    return max(1, round(width / MULTIPLE)) * MULTIPLE
