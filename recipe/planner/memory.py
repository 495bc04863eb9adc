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
    """GiB of one GPU. `moments` are the totals at the places where memory is fullest; the largest is the peak."""

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
        kept = sum(p.numel for p in persistent(parameters, zero))
        return StateBytes(shard * element, kept * element, shard * 4, shard * 8, shard * accumulated, bucket)
    padded = sum(flat_numel(work, group) for group in flat_groups(work))
    if zero.stage == 0:
        master = 0 if element == 4 else whole * 4
        return StateBytes(whole * element, 0, master, whole * 8, whole * accumulated, 0)
    shard = sum(flat_numel(work, group) // work.partitions(expert=group[0]) for group in flat_groups(work))
    gradients = shard * accumulated if zero.stage == 2 else whole * accumulated
    buckets = bucket * (2 if zero.overlap_comm else 1)
    return StateBytes(padded * element, 0, shard * 4, shard * 8, gradients, buckets)


def saved_bytes_per_token(work: Workload, *, moe: bool) -> dict[str, float]:
    """Bytes per token of one layer that autograd keeps for the backward pass without recompute, balanced."""
    shape, a, compiled = work.shape, work.element, work.run.compile
    # Eager, a norm keeps its input in fp32 and, cast back, what it scaled; an activation its result beside its inputs.
    wide = a if compiled else 4 + a if a == 2 else 2 * a
    activated = 3 if compiled else 4
    D, F = shape.hidden_size, shape.moe_intermediate_size
    Q, K = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    heads = shape.num_attention_heads + shape.num_key_value_heads
    norms = 2 * (wide * D + 4)
    if shape.use_qk_norm:
        norms += wide * (Q + K) + 4 * heads
    found = {
        "norms": norms,
        # the projections' input, rotated queries and keys, values, log-sum-exp, the output (eager: twice)
        "attention": a * (D + Q + 2 * K + (1 if compiled else 2) * Q) + 4 * shape.num_attention_heads,
        "MLP input": a * D,
    }
    if not moe:
        return {**found, "dense MLP": activated * a * shape.intermediate_size}
    k, E = shape.num_experts_per_tok, shape.n_routed_experts
    return {
        **found,
        "router": 2 * 4 * E + k * (8 + 4) + 24,
        # the kernel of AutoEP's activation keeps its inputs; its result is the next matmul's
        "routed experts": k * (a * D + 3 * a * F),
        "combine": k * (a * D + 4 + 8 + 8 + 4),
        "shared experts": activated * a * F * shape.n_shared_experts,
    }


def plan_memory(work: Workload, imbalance: float) -> MemoryPlan:
    """Memory of the fullest rank when its experts get `imbalance` times the mean of assignments."""
    zero, shape, run = work.ds.zero_optimization, work.shape, work.run
    held = state_bytes(work)
    states = {
        "parameters": held.parameters,
        "persistent parameters": held.persistent_parameters,
        "gradients": held.gradients,
        "master weights": held.master_weights,
        "optimizer moments": held.moments,
        "reduce buckets": held.reduce_buckets,
    }
    gathered = 0
    if zero.stage == 3:
        gathered = (
            micro_batch_fetches(shape, work.ep, zero, run.recompute, accumulates=work.accumulation > 1).peak_numel
            * work.element
        )
    per_layer = {moe: _layer_bytes(work, moe=moe, imbalance=imbalance) for moe in (False, True)}
    boundary = work.tokens * shape.hidden_size * work.element  # a layer's input
    if run.recompute == "none":
        stored = {f"saved: {kind}": size for kind, size in _all_layers(work, per_layer).items()}
        working: dict[str, float] = {}
    else:
        stored = {"layer inputs": shape.num_hidden_layers * boundary}
        fullest = max(per_layer.values(), key=lambda kinds: sum(kinds.values()))
        working = {f"recomputed: {kind}": size for kind, size in fullest.items()}
    embedding = shape.vocab_size * shape.hidden_size
    head = embedding * (4 + 2 * work.element)  # its gradient in fp32 while chunks are added, then cast, then reduced
    # Eager: logits, in fp32, their softmax, its gradient. Compiled: logits and gradient.
    per_logit = 2 * work.element if run.compile else 4 + 4 + work.element
    chunk = min(run.loss_chunk_tokens, work.tokens) * shape.vocab_size * per_logit
    backward = {
        "ZeRO-3 gathered": gathered,
        **stored,
        **working,
        **_backward_bytes(work, imbalance),
        "gradients in flight": _in_flight_bytes(work),
    }
    loss = {
        "ZeRO-3 gathered": gathered,
        **stored,
        "loss chunk": chunk,
        "head gradient": head,
        "final norm": 4 * boundary,
    }
    shard = held.master_weights // 4
    update: dict[str, float] = {"fp32 gradients of the update": 4 * shard, "updated parameters": work.element * shard}
    if zero.stage in (1, 2):
        update["gathered parameters"] = zero.allgather_bucket_size * work.element
    moments: dict[str, dict[str, float]] = {
        "backward of the last MoE layer": backward,
        "loss": loss,
        "optimizer step": update,
    }
    return MemoryPlan(
        {name: size / GIB for name, size in states.items() if size},
        {m: {name: size / GIB for name, size in terms.items() if size} for m, terms in moments.items()},
        imbalance,
    )


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
