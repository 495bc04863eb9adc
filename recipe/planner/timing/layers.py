"""How long one GPU computes a decoder layer, by parts that have names: forward, backward, and run again for the backward pass.

A part that `recipe/planner/kept.py` can keep has its name there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from recipe.base.hardware import Accelerator
from recipe.planner.architecture import Architecture
from recipe.planner.timing.kernels import (
    ATTENTION_BACKWARD_FLOPS,
    BACKWARD_FLOPS,
    BF16,
    Software,
    attention_s,
    matmul_s,
    memory_s,
)

FP32 = 4
# Tensor cores want rows of 16 bytes. Of their speed on others, 1/15: a model of 13,824 hidden takes 162.72 s a step with 128
# heads of 108, and 121.28 with 64 of 216, where the matmuls of scores are 2.5% of the FLOPs
# (bigscience, train/tr11-176B-ml/chronicles-prequel.md, "NHEADs comparison").
ALIGNED, UNALIGNED_SPEED = 8, 1 / 15
# A recomputation ends inside the last projection, and what follows the experts saves nothing: these run once.
NEVER_AGAIN = frozenset({"down", "unpermute", "sum", "shared_down"})
SHARED = ("shared_gate_up", "shared_activation", "shared_down")
# Of one part of an exchange: what is done with rows between the exchanges.
EXPERTS = ("permute", "gate_up", "activation", "down", "unpermute")
ROUTED = ("router", *SHARED, "rows", *EXPERTS, "sum")
ACTIVATIONS = ("activation", "shared_activation")


@dataclass(frozen=True)
class LayerLoad:
    """What a layer computes in a micro-batch, and over how many ranks it is split."""

    moe: bool  # whether its MLP is routed
    tokens: float  # of a tensor-parallel group's micro-batch
    seq_length: int
    tp: int = 1  # ranks that split attention and the MLPs
    expert_ranks: int = 1  # ranks that split the experts
    expert_tp: int = 1  # ranks that split each expert
    imbalance: float = 1.0  # rows of the busiest rank over the mean, where experts are on several ranks
    parts: int = 1  # of an MoE layer's tokens, each with exchanges and grouped GEMMs of its own
    flash: bool = True  # attention without the score matrix in memory
    masked: bool = False  # by a mask, so that attention computes the half that is hidden too
    sequence_parallel: bool = True  # whether a tensor-parallel group also splits what lies between its matmuls


@dataclass(frozen=True)
class Part:
    """Seconds of a part, by what bounds its kernels; of its forward pass where nothing else is said."""

    matmuls_s: float = 0.0
    attention_s: float = 0.0
    memory_s: float = 0.0
    moves: bool = False  # rows to another place: the backward pass moves them back; other ops move twice the bytes
    backward_memory_s: float = 0.0  # beyond that

    @property
    def forward_s(self) -> float:
        return self.matmuls_s + self.attention_s + self.memory_s

    @property
    def backward_s(self) -> float:
        matmuls = BACKWARD_FLOPS * self.matmuls_s + ATTENTION_BACKWARD_FLOPS * self.attention_s
        return matmuls + (1.0 if self.moves else 2.0) * self.memory_s + self.backward_memory_s


@dataclass(frozen=True)
class Layer:
    """One layer on one GPU for one micro-batch, without communication."""

    parts: dict[str, Part]  # in the order of the forward pass
    launches_s: float  # of the forward pass; kernels are no faster than their launches
    host_reads_s: float
    gradient_sums_s: float  # weight gradients of an exchange's parts, added up

    @property
    def forward_s(self) -> float:
        return max(self.of(self.parts), self.launches_s) + self.host_reads_s

    @property
    def backward_s(self) -> float:
        computed = sum(part.backward_s for part in self.parts.values())
        return max(computed + self.gradient_sums_s, BACKWARD_FLOPS * self.launches_s)

    def again_s(self, kept: Collection[str] = ()) -> float:
        """Of the recomputation, where the routing plan and the results named `kept` are still there."""
        return max(self.of(self.parts_again(kept)), self.launches_s)

    def parts_again(self, kept: Collection[str] = ()) -> list[str]:
        return [name for name in self.parts if name not in NEVER_AGAIN and name not in kept]

    def of(self, names: Collection[str]) -> float:
        """Of the forward pass of parts; those that the layer does not have take no time."""
        return sum(part.forward_s for name, part in self.parts.items() if name in names)

    def backward_of(self, names: Collection[str]) -> float:
        return sum(part.backward_s for name, part in self.parts.items() if name in names)


def layer_of(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad) -> Layer:
    """One layer's computation by parts.

    Args:
        gpu: whose efficiencies and bandwidth are taken.
        model: widths, experts and matmuls of the layer.
        software: what its kernels move and launch.
        load: tokens, and over how many ranks the layer is split.
    """
    mlp = _routed_parts(gpu, model, software, load) if load.moe else _dense_parts(gpu, model, software, load)
    kernels = software.kernels
    if load.moe:
        kernels += software.moe_kernels + (load.parts - 1) * software.part_kernels
    return Layer(
        dict([*_attention_parts(gpu, model, software, load), *mlp]),
        kernels * gpu.launch_s,
        (software.host_reads if load.moe and load.expert_ranks > 1 else 0) * gpu.host_read_s,
        _gradient_sums_s(gpu, model, load) if load.moe else 0.0,
    )


def _attention_parts(
    gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad
) -> Iterator[tuple[str, Part]]:
    tokens, tp = load.tokens, load.tp
    elements = tokens * (model.hidden + model.attention_width) / 2 / (tp if load.sequence_parallel else 1)
    between = software.attention_bytes_per_hidden - software.norm_bytes_per_hidden
    yield "norms", Part(memory_s=memory_s(gpu, software.norm_bytes_per_hidden * elements))
    yield "rotary_and_residuals", Part(memory_s=memory_s(gpu, between * elements))
    *before, after = [matmul_s(gpu, tokens, a, max(1.0, b / tp)) for a, b in model.attention_matmuls]
    yield "query_key_value", Part(matmuls_s=sum(before))
    yield "attention", _attention(gpu, model, load)
    yield "attention_projection", Part(matmuls_s=after)


def _attention(gpu: Accelerator, model: Architecture, load: LayerLoad) -> Part:
    tokens, tp = load.tokens, load.tp
    if load.flash:
        causal_s = attention_s(gpu, tokens, load.seq_length, model.attention_width / tp)
        return Part(attention_s=2 * causal_s if load.masked else causal_s)
    # Scores and probabilities written and read, in bf16 and fp32, with mask, softmax and dropout.
    moved = tokens * load.seq_length * model.heads / tp * 5 * BF16
    width = model.attention_width / model.heads
    scores = 2 * matmul_s(gpu, load.seq_length, width, load.seq_length) * tokens / load.seq_length * model.heads / tp
    if width % ALIGNED:
        scores /= UNALIGNED_SPEED
    return Part(attention_s=scores, memory_s=memory_s(gpu, moved))


def _dense_parts(
    gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad
) -> Iterator[tuple[str, Part]]:
    width = model.dense_intermediate / load.tp
    yield from _mlp_parts(gpu, model, software, load.tokens, width, ("gate_up", "activation", "down"))


def _mlp_parts(
    gpu: Accelerator, model: Architecture, software: Software, tokens: float, width: float, names: tuple[str, str, str]
) -> Iterator[tuple[str, Part]]:
    gate_up, activation, down = names
    yield gate_up, Part(matmuls_s=(model.mlp_matrices - 1) * matmul_s(gpu, tokens, model.hidden, width))
    yield activation, Part(memory_s=memory_s(gpu, software.mlp_bytes_per_intermediate * tokens * width))
    yield down, Part(matmuls_s=matmul_s(gpu, tokens, width, model.hidden))


def _routed_parts(
    gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad
) -> Iterator[tuple[str, Part]]:
    """Of the router, the shared experts, and this rank's routed ones."""
    D, tokens, width = model.hidden, load.tokens / load.tp, model.expert_intermediate / load.expert_tp
    sent = tokens * model.top_k * load.expert_tp
    # Where a rank has all experts, it has all rows of its own tokens and no other.
    rows = sent * (load.imbalance if load.expert_ranks > 1 else 1.0)
    yield "router", Part(memory_s=memory_s(gpu, software.router_bytes_per_expert * tokens * model.experts))
    if model.shared_intermediate:
        yield from _mlp_parts(gpu, model, software, load.tokens, model.shared_intermediate / load.tp, SHARED)

    def moved(bytes_per_hidden: float) -> Part:
        return Part(memory_s=memory_s(gpu, bytes_per_hidden * rows * D), moves=True)

    yield "rows", moved(software.gather_bytes_per_hidden)
    if load.expert_ranks > 1:  # rows come by rank and go to their grouped GEMM by expert
        yield "permute", moved(software.permute_bytes_per_hidden)
    grouped = _grouped(gpu, model, software, load, rows)
    sums = memory_s(gpu, software.row_gradient_bytes_per_hidden * rows * D)
    yield "gate_up", Part(matmuls_s=(model.mlp_matrices - 1) * grouped(D, width), backward_memory_s=sums)
    activated = software.weighted_bytes_per_intermediate * rows * width + FP32 * rows
    yield "activation", Part(memory_s=memory_s(gpu, activated))
    yield "down", Part(matmuls_s=grouped(width, D))
    if load.expert_ranks > 1:
        yield "unpermute", moved(software.permute_bytes_per_hidden)
    yield "sum", moved(software.sum_bytes_per_hidden)


def _grouped(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad, rows: float):
    """Seconds of a grouped GEMM over all parts' rows, by inner and output width."""
    local = model.experts / load.expert_ranks
    efficiency = gpu.grouped_gemm if software.grouped_gemm is None else software.grouped_gemm
    of_expert = rows / load.parts / local

    def seconds(inner: float, columns: float) -> float:
        return load.parts * matmul_s(
            gpu, of_expert, inner, columns, grouped_over=local, grouped_gemm=efficiency
        )  # fmt: skip

    return seconds


def _gradient_sums_s(gpu: Accelerator, model: Architecture, load: LayerLoad) -> float:
    """Each part of an exchange after the first adds its weight gradients: both are read, the sum is written."""
    held = model.expert_parameters / load.expert_ranks / load.expert_tp
    return memory_s(gpu, (load.parts - 1) * held * 3 * BF16)
