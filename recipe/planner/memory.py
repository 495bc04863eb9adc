"""GPU memory by term: what always stays, what comes and goes, and where the sum is largest.

States are exact; tests compare them with the real engine's tensors. Saved activations are counted from the modules
of `recipe/model/modeling.py` and AutoEP's layer as autograd keeps them, and compared with what autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import GIB
from recipe.planner.communication import flat_groups, flat_numel
from recipe.planner.parameters import decoder
from recipe.planner.workload import BYTES, Workload
from recipe.planner.zero3 import micro_batch_fetches, persistent

CONTEXT_GIB = 1.6  # CUDA context, NCCL channels of three communicators, cuBLAS workspaces; outside the allocator
FRAGMENTATION = 0.06  # of what comes and goes: the caching allocator rounds, splits and keeps blocks of odd sizes


@dataclass(frozen=True)
class MemoryPlan:
    """GiB of one GPU. `moments` are the totals at the times when memory is fullest; the largest is the peak."""

    states: dict[str, float]
    passing: dict[str, dict[str, float]]  # moment -> term -> GiB
    imbalance: float  # at which the passing terms are taken

    def at(self, moment: str) -> dict[str, float]:
        """All terms at a moment, slack included."""
        passing = self.passing[moment]
        slack = {"allocator slack": FRAGMENTATION * sum(passing.values()), "CUDA and NCCL": CONTEXT_GIB}
        return {**self.states, **passing, **slack}

    @property
    def peak_moment(self) -> str:
        return max(self.passing, key=lambda moment: sum(self.at(moment).values()))

    @property
    def peak_gib(self) -> float:
        return sum(self.at(self.peak_moment).values())


@dataclass(frozen=True)
class StateBytes:
    """Bytes that a rank keeps all the time: parameters, gradients, optimizer."""

    parameters: int
    persistent_parameters: int
    master_weights: int
    moments: int
    gradients: int
    reduce_buckets: int


def state_bytes(work: Workload) -> StateBytes:
    """What the engine allocates for a rank, exactly."""
    zero, element = work.ds.zero_optimization, work.element
    parameters = decoder(work.shape, work.ep).parameters
    whole = sum(p.numel for p in parameters)
    accumulated = BYTES[work.accumulated_dtype]
    bucket = zero.reduce_bucket_size * BYTES[work.reduced_dtype] if zero.contiguous_gradients else 0
    if zero.stage == 3:
        shard = sum(p.padded(work.partitions(expert=p.expert)) // work.partitions(expert=p.expert) for p in parameters)
        gathered = sum(p.numel for p in persistent(parameters, zero))
        return StateBytes(shard * element, gathered * element, shard * 4, shard * 8, shard * accumulated, bucket)
    padded = sum(flat_numel(work, group) for group in flat_groups(work))
    if zero.stage == 0:
        master = 0 if element == 4 else whole * 4
        return StateBytes(whole * element, 0, master, whole * 8, whole * accumulated, 0)
    shard = sum(flat_numel(work, group) // work.partitions(expert=group[0]) for group in flat_groups(work))
    gradients = shard * accumulated if zero.stage == 2 else whole * accumulated
    buckets = bucket * (2 if zero.overlap_comm else 1)
    return StateBytes(padded * element, 0, shard * 4, shard * 8, gradients, buckets)


def saved_bytes_per_token(work: Workload, *, moe: bool) -> dict[str, float]:
    """Bytes per token that autograd keeps of one layer for the backward pass, where nothing is recomputed.

    Args:
        work: its shape and precision, and whether its functions are compiled.
        moe: whether the layer's MLP is routed.

    Returns:
        Bytes by kind, for a rank whose experts get the mean of assignments.
    """
    shape, a, compiled = work.shape, work.element, work.run.compile
    # Eager, a norm keeps its input in fp32 and, cast back, what it scaled; an activation its result beside its inputs.
    norm_bytes = a if compiled else 4 + a if a == 2 else 2 * a
    activated = 3 if compiled else 4
    D, F = shape.hidden_size, shape.moe_intermediate_size
    Q, K = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    heads = shape.num_attention_heads + shape.num_key_value_heads
    norms = 2 * (norm_bytes * D + 4)
    if shape.use_qk_norm:
        norms += norm_bytes * (Q + K) + 4 * heads
    saved = {
        "norms": norms,
        # the projections' input, rotated queries and keys, values, log-sum-exp, the output (eager: twice)
        "attention": a * (D + Q + 2 * K + (1 if compiled else 2) * Q) + 4 * shape.num_attention_heads,
        "MLP input": a * D,
    }
    if not moe:
        return {**saved, "dense MLP": activated * a * shape.intermediate_size}
    k, E = shape.num_experts_per_tok, shape.n_routed_experts
    return {
        **saved,
        "router": 2 * 4 * E + k * (8 + 4) + 24,
        # the kernel of AutoEP's activation keeps its inputs; its result is the next matmul's
        "routed experts": k * (a * D + 3 * a * F),
        "combine": k * (a * D + 4 + 8 + 8 + 4),
        "shared experts": activated * a * F * shape.n_shared_experts,
    }


def plan_memory(work: Workload, imbalance: float) -> MemoryPlan:
    """Memory of the fullest rank.

    Args:
        work: model, cluster, ds_config and what matters of the run.
        imbalance: assignments to that rank's experts over the mean.

    Returns:
        GiB by term: what always stays, and what comes and goes at each moment when memory is full.
    """
    held = state_bytes(work)
    states = {
        "parameters": held.parameters,
        "persistent parameters": held.persistent_parameters,
        "gradients": held.gradients,
        "master weights": held.master_weights,
        "optimizer moments": held.moments,
        "reduce buckets": held.reduce_buckets,
    }
    passes = {"ZeRO-3 gathered": _gathered_bytes(work), **_stored_bytes(work, imbalance)}
    moments: dict[str, dict[str, float]] = {
        "backward of the last MoE layer": {
            **passes,
            **_recomputed_bytes(work, imbalance),
            **_backward_bytes(work, imbalance),
            "gradients in flight": _in_flight_bytes(work),
        },
        "loss": {**passes, **_loss_bytes(work)},
        "optimizer step": _update_bytes(work, held),
    }
    return MemoryPlan(
        {name: size / GIB for name, size in states.items() if size},
        {m: {name: size / GIB for name, size in terms.items() if size} for m, terms in moments.items()},
        imbalance,
    )


def _gathered_bytes(work: Workload) -> int:
    """Of the parameters that ZeRO-3 holds at once beyond a rank's partition."""
    zero = work.ds.zero_optimization
    if zero.stage != 3:
        return 0
    accumulates = work.accumulation > 1
    fetches = micro_batch_fetches(work.shape, work.ep, zero, work.run.recompute, accumulates=accumulates)
    return fetches.peak_numel * work.element


def _boundary_bytes(work: Workload) -> int:
    """Of a layer's input."""
    return work.tokens * work.shape.hidden_size * work.element


def _stored_bytes(work: Workload, imbalance: float) -> dict[str, float]:
    """From the forward to the backward pass: what autograd saved, or the inputs to recompute it from."""
    if work.run.recompute != "none":
        return {"layer inputs": work.shape.num_hidden_layers * _boundary_bytes(work)}
    per_layer = {moe: _layer_bytes(work, moe=moe, imbalance=imbalance) for moe in (False, True)}
    return {f"saved: {kind}": size for kind, size in _all_layers(work, per_layer).items()}


def _recomputed_bytes(work: Workload, imbalance: float) -> dict[str, float]:
    """Of the layer that saves most, while it is recomputed."""
    if work.run.recompute == "none":
        return {}
    per_layer = [_layer_bytes(work, moe=moe, imbalance=imbalance) for moe in (False, True)]
    fullest = max(per_layer, key=lambda kinds: sum(kinds.values()))
    return {f"recomputed: {kind}": size for kind, size in fullest.items()}


def _loss_bytes(work: Workload) -> dict[str, float]:
    """Of the head, whose gradient is in fp32 while chunks are added, then cast, then reduced."""
    shape, run = work.shape, work.run
    # Eager: logits, in fp32, their softmax, its gradient. Compiled: logits and gradient.
    per_logit = 2 * work.element if run.compile else 4 + 4 + work.element
    return {
        "loss chunk": min(run.loss_chunk_tokens, work.tokens) * shape.vocab_size * per_logit,
        "head gradient": shape.vocab_size * shape.hidden_size * (4 + 2 * work.element),
        "final norm": 4 * _boundary_bytes(work),
    }


def _update_bytes(work: Workload, held: StateBytes) -> dict[str, float]:
    zero, shard = work.ds.zero_optimization, held.master_weights // 4
    update: dict[str, float] = {"fp32 gradients of the update": 4 * shard, "updated parameters": work.element * shard}
    if zero.stage in (1, 2):
        update["gathered parameters"] = zero.allgather_bucket_size * work.element
    return update


def _layer_bytes(work: Workload, *, moe: bool, imbalance: float) -> dict[str, float]:
    saved = saved_bytes_per_token(work, moe=moe)
    return {n: b * work.tokens * (imbalance if n == "routed experts" else 1.0) for n, b in saved.items()}


def _all_layers(work: Workload, per_layer: dict[bool, dict[str, float]]) -> dict[str, float]:
    layers = {False: work.shape.first_k_dense_replace, True: work.shape.num_moe_layers}
    kinds = dict.fromkeys([*per_layer[True], *per_layer[False]])
    return {kind: sum(layers[moe] * per_layer[moe].get(kind, 0.0) for moe in layers) for kind in kinds}


def _backward_bytes(work: Workload, imbalance: float) -> dict[str, float]:
    """Gradients inside one MoE layer while its experts run backward."""
    shape, a = work.shape, work.element
    rows = work.tokens * shape.num_experts_per_tok
    return {
        # rows of this rank's tokens, and rows of its experts before and after they are sorted by expert
        "all-to-all buffers": (1 + 2 * imbalance) * rows * shape.hidden_size * a,
        "gradients of routed rows": imbalance * rows * 3 * shape.moe_intermediate_size * a,
        "gradients of a layer's rows": 3 * work.tokens * shape.hidden_size * a,
    }


def _in_flight_bytes(work: Workload) -> float:
    """Gradients of a layer before they are reduced, and their copy in the order of the partitions."""
    zero, size = work.ds.zero_optimization, BYTES[work.reduced_dtype]
    parameters = decoder(work.shape, work.ep).parameters
    last = f"model.layers.{work.shape.num_hidden_layers - 1}."
    layer = sum(p.numel for p in parameters if p.name.startswith(last))
    if zero.stage == 3:
        return (layer + min(layer, zero.reduce_bucket_size)) * size
    return layer * size
