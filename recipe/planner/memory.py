"""GPU memory by term: what always stays, what comes and goes, and where the sum is largest.

States are exact; tests compare them with the real engine's tensors. Saved activations are counted from the modules
of `recipe/model/modeling.py` and AutoEP's layer as autograd keeps them, and compared with what autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import GIB
from recipe.planner.communication import fetches_of, flat_groups, flat_numel
from recipe.planner.kept import Rows, kept_bytes, routing_plan_bytes, rows_of, saved_bytes
from recipe.planner.parameters import decoder
from recipe.planner.workload import BYTES, Workload
from recipe.planner.zero3 import persistent

CONTEXT_GIB = 1.6  # CUDA context, NCCL channels of three communicators, cuBLAS workspaces; outside the allocator
FRAGMENTATION = 0.06  # of what comes and goes: the caching allocator rounds, splits and keeps blocks of odd sizes

BOOLEAN = 1  # bytes of an element of the mask that keeps documents apart


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
        ranks = {expert: work.partitions(expert=expert) for expert in (False, True)}
        shard = sum(p.padded(ranks[p.expert]) // ranks[p.expert] for p in parameters)
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
    return {kind: size / work.tokens for kind, size in _layer_bytes(work, moe=moe, imbalance=1.0).items()}


def _layer_bytes(work: Workload, *, moe: bool, imbalance: float) -> dict[str, float]:
    """Bytes that autograd keeps of one layer, by kind."""
    rows = _rows(work, imbalance)
    saved = saved_bytes(work.shape, rows, moe=moe, element=work.element, compiled=work.run.compile)
    return saved | ({"routing plan": routing_plan_bytes(work.shape, rows, ep_size=work.ep)} if moe else {})


def _rows(work: Workload, imbalance: float) -> Rows:
    return rows_of(work.shape, tokens=work.tokens, ep_size=work.ep, imbalance=imbalance, parts=work.exchange_parts)


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
        "moving average": (held.master_weights or held.parameters) if work.run.averaged else 0,
        "reduce buckets": held.reduce_buckets,
    }
    gathered = {"ZeRO-3 gathered": _gathered_bytes(work), "attention mask": mask_bytes(work)}
    passes = {**gathered, **_stored_bytes(work, imbalance, work.shape.num_hidden_layers)}
    moments: dict[str, dict[str, float]] = {
        "backward of the last MoE layer": {
            **gathered,
            # of the last layer what was kept is among what is computed again
            **_stored_bytes(work, imbalance, work.shape.num_hidden_layers - 1),
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


def mask_bytes(work: Workload) -> int:
    """Of the mask that all layers share, for the sequences of a micro-batch."""
    return BOOLEAN * _pairs(work)


def masked_layer_bytes(work: Workload) -> int:
    """That autograd keeps of a layer beyond attention without a mask.

    torch makes of the mask the bias that is added to scores, in the dtype of the queries; transformers repeat keys and values
    for each query head, since torch's kernels group heads only where there is no mask.
    """
    if not work.run.masked:
        return 0
    shape = work.shape
    repeated_heads = shape.num_attention_heads - shape.num_key_value_heads
    return work.element * (_pairs(work) + 2 * work.tokens * repeated_heads * shape.head_dim)


def _pairs(work: Workload) -> int:
    """Of tokens of a sequence, in a micro-batch."""
    return work.tokens * work.run.seq_length if work.run.masked else 0


def _gathered_bytes(work: Workload) -> int:
    """Of the parameters that ZeRO-3 holds at once beyond a rank's partition."""
    return fetches_of(work).peak_numel * work.element if work.ds.zero_optimization.stage == 3 else 0


def _boundary_bytes(work: Workload) -> int:
    """Of a layer's input."""
    return work.tokens * work.shape.hidden_size * work.element


def _stored_bytes(work: Workload, imbalance: float, layers: int) -> dict[str, float]:
    """From the forward to the backward pass: what autograd saved, or the inputs to recompute it from.

    Args:
        layers: the first ones, whose kept results are not taken yet.
    """
    if work.run.recompute == "none":
        per_layer = {moe: _layer_bytes(work, moe=moe, imbalance=imbalance) for moe in (False, True)}
        return {
            **{f"saved: {kind}": size for kind, size in _all_layers(work, per_layer).items()},
            "saved: masked attention": work.shape.num_hidden_layers * masked_layer_bytes(work),
        }
    return {
        "layer inputs": work.shape.num_hidden_layers * _boundary_bytes(work),
        **_kept_bytes(work, imbalance, layers),
    }


def _kept_bytes(work: Workload, imbalance: float, layers: int) -> dict[str, float]:
    """Of the first `layers`, beside their inputs: results that are not computed again, and routing plans."""
    if work.run.recompute == "reentrant":
        return {}
    shape, rows = work.shape, _rows(work, imbalance)
    element, compiled, dense = work.element, work.run.compile, shape.first_k_dense_replace
    results = sum(
        kept_bytes(shape, name, rows, moe=number >= dense, element=element, compiled=compiled)
        for number in range(layers)
        for name in work.kept.of_layer(number)
    )
    plans = max(0, layers - shape.first_k_dense_replace) * routing_plan_bytes(shape, rows, ep_size=work.ep)
    masked = min(layers, work.kept.whole) * masked_layer_bytes(work)
    return {"kept results": results + masked, "routing plans": plans}


def _recomputed_bytes(work: Workload, imbalance: float) -> dict[str, float]:
    """Of the layer that saves most, while it is recomputed."""
    if work.run.recompute == "none":
        return {}
    per_layer = [_layer_bytes(work, moe=moe, imbalance=imbalance) for moe in (False, True)]
    fullest = max(per_layer, key=lambda kinds: sum(kinds.values()))
    return {
        **{f"recomputed: {kind}": size for kind, size in fullest.items()},
        "recomputed: masked attention": masked_layer_bytes(work),
    }


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


def _all_layers(work: Workload, per_layer: dict[bool, dict[str, float]]) -> dict[str, float]:
    layers = {False: work.shape.first_k_dense_replace, True: work.shape.num_moe_layers}
    kinds = dict.fromkeys([*per_layer[True], *per_layer[False]])
    return {kind: sum(layers[moe] * per_layer[moe].get(kind, 0.0) for moe in layers) for kind in kinds}


def _backward_bytes(work: Workload, imbalance: float) -> dict[str, float]:
    """Gradients inside one MoE layer while its experts run backward."""
    shape, a, parts = work.shape, work.element, work.exchange_parts
    rows, row_bytes = _rows(work, imbalance), shape.hidden_size * a
    gradients = {
        "gradients of routed rows": rows.computed / parts * 3 * shape.moe_intermediate_size * a,
        "gradients of a layer's rows": 3 * work.tokens * row_bytes,
    }
    if work.ep == 1:  # of what comes out of the experts, and of what goes in
        return {"gradients of rows in and out": 2 * rows.computed * row_bytes, **gradients}
    # Rows of this rank's tokens and rows of its experts, of all parts: what is not under way to the experts is on its way
    # back. And those of one part in its experts' order, what comes out and, of more parts than one, what goes in.
    in_order = rows.computed / parts * min(parts, 2)
    assigned = work.tokens * shape.num_experts_per_tok
    return {"all-to-all buffers": (assigned + rows.arrived + in_order) * row_bytes, **gradients}


def _in_flight_bytes(work: Workload) -> float:
    """Gradients of a layer before they are reduced, and their copy in the order of the partitions.

    Of the experts' weights those of all parts of an exchange are added up first, one more of them at a time.
    """
    zero, size = work.ds.zero_optimization, BYTES[work.reduced_dtype]
    parameters = decoder(work.shape, work.ep).parameters
    last = f"model.layers.{work.shape.num_hidden_layers - 1}."
    of_layer = [p for p in parameters if p.name.startswith(last)]
    layer = sum(p.numel for p in of_layer)
    another = max(p.numel for p in of_layer if p.expert) * work.element if work.exchange_parts > 1 else 0
    if zero.stage == 3:
        return (layer + min(layer, zero.reduce_bucket_size)) * size + another
    return layer * size + another
