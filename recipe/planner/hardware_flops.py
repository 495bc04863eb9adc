"""FLOPs that are computed for a token, those of recomputed layers among them: the numerator of HFU."""

from __future__ import annotations

from recipe.base.model_shape import ModelShape
from recipe.planner.kept import EVERYTHING, NOTHING, Kept


def hardware_flops_per_token(shape: ModelShape, seq_length: int, recompute: str, kept: Kept = NOTHING) -> float:
    """Model FLOPs, and those of the matmuls that run a second time in the backward pass. The head is not recomputed.

    Args:
        seq_length: tokens of a sequence.
        recompute: `compute.recompute` of the run config.
        kept: what layers keep with `selective`.
    """
    model = shape.training_flops_per_token(seq_length)
    return model + recomputed_flops_per_token(shape, seq_length, recompute, kept)


def recomputed_flops_per_token(shape: ModelShape, seq_length: int, recompute: str, kept: Kept = NOTHING) -> float:
    """Of the second pass of all layers.

    The down projections, whose results no gradient needs, run a second time with torch's reentrant checkpoints alone.
    """
    if recompute == "none":
        return 0.0
    flops = 0.0
    for number in range(shape.num_hidden_layers):
        if recompute == "selective" and EVERYTHING in kept.of_layer(number):
            continue
        matmuls = forward_flops_per_token(shape, seq_length, moe=number >= shape.first_k_dense_replace)
        left_out = kept.of_layer(number) if recompute == "selective" else frozenset()
        if recompute != "reentrant":
            left_out |= {"down"}
        flops += sum(size for name, size in matmuls.items() if name not in left_out)
    return flops


def forward_flops_per_token(shape: ModelShape, seq_length: int, *, moe: bool) -> dict[str, float]:
    """FLOPs of one layer's matmuls, by the names of `recipe/planner/kept.py`, and the router's and the down projections'.

    Counted as `ModelShape.training_flops_per_token` counts them: 2 for a parameter, of a causal context the half.
    """
    D, F, k = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts_per_tok
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    rows_of_projections = D + (1 if shape.attention_bias else 0)
    flops: dict[str, float] = {
        "query_key_value": 2 * rows_of_projections * (query + 2 * key),
        "attention": 2 * 2 * query * (seq_length / 2),  # scores, and their product with the values
        "attention_projection": 2 * query * D,
    }
    if not moe:
        return {**flops, "gate_up": 2 * 2 * D * shape.intermediate_size, "down": 2 * D * shape.intermediate_size}
    shared = shape.n_shared_experts
    return {
        **flops,
        "router": 2 * D * shape.n_routed_experts,
        "gate_up": 2 * 2 * D * F * k,
        "shared_gate_up": 2 * 2 * D * F * shared,
        "down": 2 * D * F * (k + shared),
    }
