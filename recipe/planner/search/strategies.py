"""Step time under tensor, pipeline, expert, context and data parallelism together, on paper.

The recipe runs ZeRO with expert parallelism; this says what the others would give, and is what published runs of
Megatron-LM, FSDP and torchtitan are compared with. Kernels and links are those of the recipe's own plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from recipe.base.hardware import Cluster
from recipe.planner.architecture import Architecture
from recipe.planner.timing.kernels import BF16, FUSED, Software, gradient_s, head_s, optimizer_s
from recipe.planner.timing.layers import ACTIVATIONS, ROUTED, SHARED, Layer, LayerLoad, layer_of
from recipe.planner.timing.links import CONTENTION, NETWORK_EFFICIENCY, START_S, Links, group_of

DATA_PARALLEL_EXPOSED = 0.35  # of the gradient reduction and weight gather of a step, where buckets overlap
# Of the all-to-alls, by Megatron-Core's overlap of one micro-batch's with another's computation
# (overlap_moe_expert_parallel_comm). Assumed: the two published runs with and without it that are otherwise alike (Qwen3-235B,
# TP2 EP32 PP8 VP4, yanring/Megatron-MoE-ModelZoo) gain 12%, which is what 0.3 gives here.
OVERLAPPED_EXCHANGE = 0.7


@dataclass(frozen=True)
class Achieved:
    """What runs achieve of what kernels and links could give. Published runs decide it (recipe/planner/tables/fitting.py)."""

    network: float = NETWORK_EFFICIENCY  # of the network's bandwidth, by rings
    exchange: float = 1.0  # of a ring's share of the network, by all-to-alls between nodes
    overlap: float = 0.8  # of computation, beside which FSDP's gathers and reductions run


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
    weights_kept: bool = False  # after the forward pass, so that sharded weights are gathered once, not twice
    prefetch: bool = True  # sharded weights are gathered beside the computation before them
    # none, selective (norms and activations), half (every second matmul or layer), moe, full
    recompute: str = "none"
    node_copies: float = 1.0  # DeepEP and the like: below 1
    exchange_hidden: float = 0.0  # share of the all-to-alls that overlap with computation
    shared_beside: bool = False  # shared experts run beside the all-to-alls, half of them beside each
    flash: bool = True
    sequence_parallel: bool = True
    overlaps_data_parallel: bool = True  # reductions, and where it is sharded gathers, run beside computation
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
    model: Architecture, cluster: Cluster, strategy: Strategy, *, seq_length: int, sequences: int, micro_batch: int,
    imbalance: float, compute: float = 1.0, achieved: Achieved = Achieved(),
) -> Estimate:  # fmt: skip
    """The time of a step of `sequences`, `micro_batch` of them at a time in each data-parallel rank."""
    s, gpu = strategy, cluster.accelerator
    links = Links(cluster, achieved.network)
    data_ranks = max(1, cluster.gpus // (s.tp * s.pp * s.cp))
    micro_batches = max(1, round(sequences / (data_ranks * micro_batch)))
    tokens = micro_batch * seq_length / s.cp
    computed = exchange = 0.0  # of all layers
    for moe, layers in ((False, model.dense_layers), (True, model.moe_layers)):
        if not layers:
            continue
        load = LayerLoad(
            moe, tokens, seq_length, s.tp, max(1, s.ep), s.expert_tp, imbalance,
            flash=s.flash, sequence_parallel=s.sequence_parallel,
        )  # fmt: skip
        layer = layer_of(gpu, model, s.software, load)
        computed += layers * (layer.forward_s + layer.backward_s + _recomputed(s.recompute, layer, moe=moe)) / compute
        passes = 3 if s.recompute == "full" or (s.recompute == "moe" and moe) else 2
        beside = layer.of(SHARED) / compute if s.shared_beside else 0.0
        one_pass = _exchange_s(links, model, s, tokens, beside, moe=moe, imbalance=imbalance, achieved=achieved)
        exchange += layers * passes * one_pass
    head = head_s(gpu, model, tokens, s.software, s.tp)
    headed = (head.forward_s + head.backward_s) / compute
    held = sum(held_parameters(model, s))
    also = gradient_s(gpu, held) / compute + _pipeline_s(links, model, s, tokens)  # of every stage
    mean = (computed + exchange + headed) / s.pp + also
    slowest = slowest_stage_s(s, model.layers, (computed + exchange) / model.layers, headed) + also
    data_s, per_micro_batch = _data_parallel_s(links, model, s, data_ranks, mean, achieved)
    work = micro_batches * (slowest + per_micro_batch)
    bubble = (s.pp - 1) / s.virtual * (mean + per_micro_batch)
    step = work + bubble + data_s + optimizer_s(gpu, held / data_ranks)
    return Estimate(
        step,
        micro_batches * (computed + headed) / s.pp,
        micro_batches * exchange / s.pp,
        bubble,
        data_s,
        sequences * seq_length / step / cluster.gpus,
    )


def slowest_stage_s(s: Strategy, layers: int, layer_s: float, head_s: float) -> float:
    """Of a pipeline's stages, which sets the pace of all.

    Layers that divide into equal chunks lie so, and the head comes on top of the last. Where they do not, embedding and head
    take the place of a layer each, or the head alone (Megatron-LM: account_for_embedding_in_pipeline_split and
    account_for_loss_in_pipeline_split).
    """
    if s.pp == 1:
        return layers * layer_s + head_s
    chunks = s.pp * s.virtual
    if layers % chunks == 0:
        return layers / s.pp * layer_s + head_s
    places = next((layers + ends for ends in (2, 1) if (layers + ends) % chunks == 0), None)
    most = places // s.pp if places else math.ceil(layers / s.pp)
    return max(most * layer_s, (most - 1) * layer_s + head_s)


def _recomputed(policy: str, layer: Layer, *, moe: bool) -> float:
    if policy in ("full", "half"):
        return layer.forward_s * (1.0 if policy == "full" else 0.5)
    if policy == "moe":
        return layer.of(ROUTED) if moe else 0.0
    return layer.of(("norms", *ACTIVATIONS)) if policy == "selective" else 0.0


def _exchange_s(
    links: Links, model: Architecture, s: Strategy, tokens: float, beside_s: float, *, moe: bool, imbalance: float,
    achieved: Achieved,
) -> float:  # fmt: skip
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
        whole = 2 * links.all_to_all_s(sent, group, node_copies=s.node_copies / achieved.exchange)
        hidden = max(s.exchange_hidden * whole, min(whole, beside_s))
        seconds += whole - hidden + CONTENTION[links.link_of(group)] * hidden
    return seconds


def held_parameters(model: Architecture, s: Strategy) -> tuple[float, float]:
    """Parameters of one GPU before data-parallel sharding: of experts, and others."""
    experts = model.moe_layers * model.expert_parameters / max(1, s.ep) / s.expert_tp
    return experts / s.pp, model.other_parameters / s.tp / s.pp


def _data_parallel_s(
    links: Links, model: Architecture, s: Strategy, data_ranks: int, computation_s: float, achieved: Achieved
) -> tuple[float, float]:
    """Exposed seconds of a step, and of each micro-batch beside `computation_s` of it."""
    expert, other = held_parameters(model, s)
    group = group_of(links.cluster, data_ranks, s.tp)
    expert_ranks = max(1, links.cluster.gpus // (s.pp * max(1, s.ep) * s.expert_tp))
    expert_group = group_of(links.cluster, expert_ranks, max(1, s.ep) * s.expert_tp)
    gather, reduce = (
        links.ring_s(op, other * BF16, group) + links.ring_s(op, expert * BF16, expert_group)
        for op in ("all_gather", "reduce_scatter")
    )
    reduce *= 2  # gradients in fp32, weights in bf16
    if not s.sharded:
        return (DATA_PARALLEL_EXPOSED if s.overlaps_data_parallel else 1.0) * (gather + reduce), 0.0
    gathers = gather if s.weights_kept else 2 * gather
    # Of the first layer and the last, with nothing beside them.
    alone = (gather + reduce) / max(1.0, model.layers / s.pp)
    beside = (gathers if s.prefetch else 0.0) + reduce if s.overlaps_data_parallel else 0.0
    hidden = min(beside, achieved.overlap * computation_s)
    return 0.0, gathers + reduce - hidden + alone + CONTENTION[links.link_of(group)] * hidden


def _pipeline_s(links: Links, model: Architecture, s: Strategy, tokens: float) -> float:
    """Activations and their gradients between stages, per micro-batch: each rank of a tensor-parallel group sends its part."""
    if s.pp == 1:
        return 0.0
    sent = 2 * s.virtual * tokens * model.hidden * BF16 / s.tp
    per_gpu = links.cluster.network_bytes_per_s / links.cluster.gpus_per_node * links.network_efficiency
    return sent / per_gpu + 2 * s.virtual * START_S
