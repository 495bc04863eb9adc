"""Step time under tensor, pipeline, expert, context and data parallelism together, on paper.

The recipe runs ZeRO with expert parallelism; this says what the others would give, and is what published runs of
Megatron-LM, FSDP and torchtitan are compared with. Kernels and links are those of the recipe's own plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import Cluster
from recipe.planner.architecture import Architecture
from recipe.planner.timing.kernels import BF16, FUSED, Software, gradient_s, head_s, optimizer_s
from recipe.planner.timing.layers import ACTIVATIONS, ROUTED, SHARED, Layer, LayerLoad, layer_of
from recipe.planner.timing.links import CONTENTION, NETWORK_EFFICIENCY, START_S, Links, group_of

STAGE_IMBALANCE = 1.04  # the slowest pipeline stage over the mean: embedding and head at the ends, unequal layers
DATA_PARALLEL_EXPOSED = 0.35  # of the gradient reduction and weight gather of a step, where buckets overlap
FSDP_OVERLAP = 0.8  # of computation under which FSDP's gathers and reductions hide
# Of the all-to-alls, by Megatron-Core's overlap of one micro-batch's with another's computation
# (overlap_moe_expert_parallel_comm). Assumed: the two published runs with and without it that are otherwise alike (Qwen3-235B,
# TP2 EP32 PP8 VP4, yanring/Megatron-MoE-ModelZoo) gain 12%, which is what 0.3 gives here.
OVERLAPPED_EXCHANGE = 0.7


@dataclass(frozen=True)
class Strategy:
    """How a run is spread. Data-parallel ranks are what remains."""

    tp: int = 1
    pp: int = 1
    virtual: int = 1  # model chunks of a pipeline stage
    ep: int = 1
    expert_tp: int = 1
    cp: int = 1
    sharded: bool = False  # FSDP or ZeRO-3: weights gathered in every micro-batch
    recompute: str = "none"  # none, selective (norms and activations), moe, full
    node_copies: float = 1.0  # DeepEP and the like: below 1
    exchange_hidden: float = 0.0  # share of the all-to-alls that overlap with computation
    shared_beside: bool = False  # shared experts run beside the all-to-alls, half of them beside each
    flash: bool = True
    sequence_parallel: bool = True
    overlaps_data_parallel: bool = True
    software: Software = FUSED


@dataclass(frozen=True)
class Estimate:
    """Of one step."""

    step_s: float
    compute_s: float  # of one GPU without bubble
    exchange_s: float  # tensor, expert and context parallel, exposed
    bubble_s: float
    data_parallel_s: float  # exposed
    tokens_per_s_per_gpu: float


def estimate(
    model: Architecture, cluster: Cluster, strategy: Strategy, *,
    seq_length: int, sequences: int, micro_batch: int, imbalance: float, compute: float = 1.0,
) -> Estimate:  # fmt: skip
    """The time of a step of `sequences`, `micro_batch` of them at a time in each data-parallel rank."""
    s, gpu = strategy, cluster.accelerator
    links = Links(cluster, NETWORK_EFFICIENCY)
    data_ranks = max(1, cluster.gpus // (s.tp * s.pp * s.cp))
    micro_batches = max(1, round(sequences / (data_ranks * micro_batch)))
    tokens = micro_batch * seq_length / s.cp
    stages = model.layers / s.pp
    forward = backward = again = exchange = 0.0
    for moe, layers in ((False, model.dense_layers), (True, model.moe_layers)):
        if not layers:
            continue
        share = layers / model.layers * stages
        load = LayerLoad(
            moe, tokens, seq_length, s.tp, max(1, s.ep), s.expert_tp, imbalance,
            flash=s.flash, sequence_parallel=s.sequence_parallel,
        )  # fmt: skip
        layer = layer_of(gpu, model, s.software, load)
        forward += share * layer.forward_s
        backward += share * layer.backward_s
        again += share * _recomputed(s.recompute, layer, moe=moe)
        passes = 3 if s.recompute == "full" or (s.recompute == "moe" and moe) else 2
        beside = layer.of(SHARED) / compute if s.shared_beside else 0.0
        exchange += share * passes * _exchange_s(links, model, s, tokens, beside, moe=moe, imbalance=imbalance)
    head = head_s(gpu, model, tokens, s.software, s.tp)
    forward, backward = forward + head.forward_s / s.pp, backward + head.backward_s / s.pp
    held = sum(held_parameters(model, s))
    accumulate = gradient_s(gpu, held)
    one_micro_batch = (
        (forward + backward + again + accumulate) / compute + exchange + _pipeline_s(links, model, s, tokens)
    )
    data_s, per_micro_batch = _data_parallel_s(links, model, s, data_ranks, one_micro_batch)
    one_micro_batch += per_micro_batch
    work = micro_batches * one_micro_batch * (STAGE_IMBALANCE if s.pp > 1 else 1.0)
    bubble = (s.pp - 1) / s.virtual * one_micro_batch
    update = optimizer_s(gpu, held / data_ranks)
    step = work + bubble + data_s + update
    total = (forward + backward + again) / compute * micro_batches
    return Estimate(step, total, exchange * micro_batches, bubble, data_s, sequences * seq_length / step / cluster.gpus)


def _recomputed(policy: str, layer: Layer, *, moe: bool) -> float:
    if policy == "full":
        return layer.forward_s
    if policy == "moe":
        return layer.of(ROUTED) if moe else 0.0
    return layer.of(("norms", *ACTIVATIONS)) if policy == "selective" else 0.0


def _exchange_s(
    links: Links, model: Architecture, s: Strategy, tokens: float, beside_s: float, *, moe: bool, imbalance: float
) -> float:
    """Tensor, expert and context parallel communication of one layer's forward pass, `beside_s` of shared experts beside it."""
    activation = tokens * model.hidden * BF16
    seconds = 0.0
    if s.tp > 1:  # all-gather and reduce-scatter around attention, and around an MLP that is split
        group = group_of(links.cluster, s.tp, 1)
        blocks = 1 if moe and s.expert_tp == 1 else 2
        seconds += blocks * (
            links.ring_s("all_gather", activation, group) + links.ring_s("reduce_scatter", activation, group)
        )
    if s.cp > 1:  # keys and values around the ring, mostly under the attention of the step before
        group = group_of(links.cluster, s.cp, s.tp)
        seconds += 0.3 * links.ring_s("all_gather", 2 * s.cp * tokens * model.key_value_width * BF16, group)
    if moe and s.ep > 1:
        group = group_of(links.cluster, s.ep, s.tp if s.expert_tp > 1 else 1)
        sent = tokens / s.tp * model.top_k * model.hidden * BF16 * imbalance
        whole = 2 * links.all_to_all_s(sent, group, node_copies=s.node_copies)
        hidden = max(s.exchange_hidden * whole, min(whole, beside_s))
        seconds += whole - hidden + CONTENTION[links.link_of(group)] * hidden
    return seconds


def held_parameters(model: Architecture, s: Strategy) -> tuple[float, float]:
    """Parameters of one GPU before data-parallel sharding: of experts, and others."""
    experts = model.moe_layers * model.expert_parameters / max(1, s.ep) / s.expert_tp
    return experts / s.pp, model.other_parameters / s.tp / s.pp


def _data_parallel_s(
    links: Links, model: Architecture, s: Strategy, data_ranks: int, one_micro_batch: float
) -> tuple[float, float]:
    """Exposed seconds of a step, and of each micro-batch."""
    expert, other = held_parameters(model, s)
    group = group_of(links.cluster, data_ranks, s.tp)
    expert_ranks = max(1, links.cluster.gpus // (s.pp * max(1, s.ep) * s.expert_tp))
    expert_group = group_of(links.cluster, expert_ranks, max(1, s.ep) * s.expert_tp)
    gather = links.ring_s("all_gather", other * BF16, group) + links.ring_s("all_gather", expert * BF16, expert_group)
    reduce = links.ring_s("reduce_scatter", other * BF16, group) + links.ring_s(
        "reduce_scatter", expert * BF16, expert_group
    )
    if s.sharded:
        layers = max(1.0, model.layers / s.pp)
        hidden = FSDP_OVERLAP * one_micro_batch
        return 0.0, max(0.0, 2 * gather + 2 * reduce - hidden) + (gather + 2 * reduce) / layers
    exposed = DATA_PARALLEL_EXPOSED if s.overlaps_data_parallel else 1.0
    return exposed * (gather + 2 * reduce), 0.0  # gradients in fp32, weights in bf16


def _pipeline_s(links: Links, model: Architecture, s: Strategy, tokens: float) -> float:
    """Activations and their gradients between stages, per micro-batch: each rank of a tensor-parallel group sends its part."""
    if s.pp == 1:
        return 0.0
    sent = 2 * s.virtual * tokens * model.hidden * BF16 / s.tp
    per_gpu = links.cluster.network_bytes_per_s / links.cluster.gpus_per_node * links.network_efficiency
    return sent / per_gpu + 2 * s.virtual * START_S
