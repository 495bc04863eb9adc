"""How long one GPU computes: matmuls by shape, grouped GEMMs by rows per expert, attention, memory-bound ops.

A matmul reaches its GPU's large-matmul efficiency less what tiles waste on short dimensions, and never beats the
memory it moves. Constants are physical and shared by all models; they were chosen with published runs in sight
(benchmarks/planner_accuracy.py), never for one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import Accelerator
from recipe.planner.architecture import Architecture

BF16 = 2
TILE = 128.0  # rows and columns of an output tile, elements of the inner dimension until the pipeline is full
HBM_EFFICIENCY = 0.75  # of the datasheet's bandwidth, which streaming kernels of many small rows reach
ATTENTION_HALF = 1000.0  # sequence length at which flash attention reaches half of its efficiency on long ones
RUN_EFFICIENCY = 0.92  # of kernels in a run over kernels alone: clocks under load, data, Python between steps
LAUNCH_S = 6e-6  # between the starts of two kernels of an eager framework on one CPU thread
BACKWARD_FLOPS = 2.0  # of the forward's, for a matmul: the gradients of input and weight
HOST_READ_S = (
    150e-6  # a value that the host waits for, such as the split sizes of an all-to-all; the GPU then waits for launches
)


@dataclass(frozen=True)
class Software:
    """What a framework's kernels move and launch beyond the matmuls, per layer."""

    name: str
    attention_bytes_per_hidden: float  # per token and element of the mean of hidden and query width
    mlp_bytes_per_intermediate: float  # per token and intermediate element: activation function and product
    routed_bytes_per_hidden: float  # per assignment and hidden element: permute, exchange buffers, weigh, sum
    router_bytes_per_expert: float  # per token and expert: scores, top-k, losses
    kernels: int  # of a layer's forward pass
    moe_kernels: int  # more of them where experts are routed
    host_reads: int  # of the forward pass of an MoE layer whose experts are on several ranks
    grouped_gemm: float  # efficiency over a plain matmul's
    loss_bytes_per_logit: float  # forward and backward, beyond the matmuls


# Counted from the modules: each pass over a tensor is its bytes read and written (bf16 2, fp32 4).
# MegaBlocks' grouped GEMM reaches 98.6% of batched cuBLAS (arXiv 2211.15841, section 6.3); Triton's kernel of AutoEP is
# assumed lower until a GPU has measured it.
# Eager, per element: two norms of 36 over the hidden width and one over queries and keys, rotary 24, residuals 12,
# attention's inputs and outputs 12; silu 4 and product 6; rows to their exchange 8, permuted there and back 4 each, and
# their weighted sum 14.
EAGER = Software("eager", 156.0, 10.0, 30.0, 60.0, 80, 90, 1, 0.80, 30.0)
# With compute.compile, per element: three norms and rotary 4 each, residuals and attention's inputs and outputs as before;
# the activation 6; rows 4 each time they move, their weighted sum 2; the loss reads logits twice and writes their gradient.
# A compiled function costs its host about 8 launches, for its guards (50 us): six of them and 20 kernels, in MoE layers eight and 50.
COMPILED = Software("compiled", 40.0, 6.0, 14.0, 40.0, 68, 114, 1, 0.80, 8.0)
# Fused kernels of Megatron-LM and TransformerEngine: each norm, rotary and activation reads and writes once.
FUSED = Software("fused", 36.0, 6.0, 12.0, 24.0, 40, 70, 2, 0.92, 30.0)


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer on one GPU for one micro-batch, without communication."""

    forward_s: float
    backward_s: float


def matmul_s(
    gpu: Accelerator, rows: float, inner: float, columns: float, *, grouped_over: float = 1.0, grouped_gemm: float = 1.0
) -> float:
    """Seconds of a bf16 matmul [rows, inner] x [inner, columns]; of `grouped_over` equal ones if more than one."""
    if rows <= 0:
        return 0.0
    shape = (rows / (rows + TILE / 2)) * (columns / (columns + TILE)) * (inner / (inner + TILE))
    efficiency = gpu.matmul_efficiency * shape * (grouped_gemm if grouped_over > 1 else 1.0)
    compute_s = 2.0 * rows * inner * columns / (gpu.bf16_flops * efficiency)
    moved = BF16 * (rows * inner + inner * columns + rows * columns)
    return grouped_over * max(compute_s, moved / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY))


def attention_s(gpu: Accelerator, tokens: float, seq_length: int, width: float) -> float:
    """Seconds of causal flash attention, forward; two matmuls of 2 FLOPs over half the sequence."""
    efficiency = gpu.attention_efficiency * seq_length / (seq_length + ATTENTION_HALF)
    return tokens * 2 * 2 * width * (seq_length / 2) / (gpu.bf16_flops * efficiency)


@dataclass(frozen=True)
class LayerLoad:
    """What a layer computes in a micro-batch, and over how many ranks it is split."""

    moe: bool  # whether its MLP is routed
    tokens: float  # of a tensor-parallel group's micro-batch
    seq_length: int
    tp: int = 1  # ranks that split attention and the MLPs
    expert_ranks: int = 1  # ranks that split the experts
    expert_tp: int = 1  # ranks that split each expert
    imbalance: float = 1.0  # rows of the busiest rank over the mean
    flash: bool = True  # attention without the score matrix in memory
    sequence_parallel: bool = True  # whether a tensor-parallel group also splits what lies between its matmuls


@dataclass(frozen=True)
class _Work:
    """Of a part of a layer, forward."""

    matmuls_s: float = 0.0
    attention_s: float = 0.0
    moved_bytes: float = 0.0  # beyond the matmuls

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            self.matmuls_s + other.matmuls_s,
            self.attention_s + other.attention_s,
            self.moved_bytes + other.moved_bytes,
        )


def layer_s(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad) -> LayerTime:
    """Seconds of one layer's computation, forward and backward, without communication.

    Args:
        gpu: whose efficiencies and bandwidth are taken.
        model: widths, experts and matmuls of the layer.
        software: what its kernels move and launch.
        load: tokens, and over how many ranks the layer is split.
    """
    mlp = _routed_work(gpu, model, software, load) if load.moe else _dense_work(gpu, model, software, load)
    work = _attention_work(gpu, model, software, load) + mlp
    memory = work.moved_bytes / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    launches = (software.kernels + (software.moe_kernels if load.moe else 0)) * LAUNCH_S
    waits = (software.host_reads if load.moe and load.expert_ranks > 1 else 0) * HOST_READ_S
    return LayerTime(
        max(work.matmuls_s + work.attention_s + memory, launches) + waits,
        max(BACKWARD_FLOPS * work.matmuls_s + 2.5 * work.attention_s + 2 * memory, 2 * launches),
    )


def _attention_work(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad) -> _Work:
    tokens, tp = load.tokens, load.tp
    matmuls = sum(matmul_s(gpu, tokens, a, max(1.0, b / tp)) for a, b in model.attention_matmuls)
    moved = software.attention_bytes_per_hidden * tokens * (model.hidden + model.attention_width) / 2
    moved /= tp if load.sequence_parallel else 1
    if load.flash:
        return _Work(matmuls, attention_s(gpu, tokens, load.seq_length, model.attention_width / tp), moved)
    # Scores and probabilities written and read, in bf16 and fp32, with mask, softmax and dropout.
    moved += tokens * load.seq_length * model.heads / tp * 5 * BF16
    scores = 2 * matmul_s(gpu, load.seq_length, 128, load.seq_length) * tokens / load.seq_length * model.heads / tp
    return _Work(matmuls, scores, moved)


def _dense_work(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad) -> _Work:
    intermediate = model.dense_intermediate / load.tp
    moved = software.mlp_bytes_per_intermediate * load.tokens * intermediate
    return _Work(matmuls_s=_mlp_s(gpu, model, load.tokens, intermediate), moved_bytes=moved)


def _routed_work(gpu: Accelerator, model: Architecture, software: Software, load: LayerLoad) -> _Work:
    """Of this rank's experts, the shared ones, and the router."""
    D, tokens = model.hidden, load.tokens
    rows = tokens / load.tp * model.top_k * load.expert_tp * load.imbalance
    local = model.experts / load.expert_ranks
    width = model.expert_intermediate / load.expert_tp
    matmuls = sum(
        matmul_s(gpu, rows / local, inner, columns, grouped_over=local, grouped_gemm=software.grouped_gemm)
        for inner, columns in [(D, width)] * (model.mlp_matrices - 1) + [(width, D)]
    )
    intermediate = rows * width
    if model.shared_intermediate:
        matmuls += _mlp_s(gpu, model, tokens, model.shared_intermediate / load.tp)
        intermediate += tokens * model.shared_intermediate / load.tp
    moved = software.routed_bytes_per_hidden * rows * D
    moved += software.router_bytes_per_expert * tokens / load.tp * model.experts
    moved += software.mlp_bytes_per_intermediate * intermediate
    return _Work(matmuls_s=matmuls, moved_bytes=moved)


def _mlp_s(gpu: Accelerator, model: Architecture, tokens: float, intermediate: float) -> float:
    return (model.mlp_matrices - 1) * matmul_s(gpu, tokens, model.hidden, intermediate) + matmul_s(
        gpu, tokens, intermediate, model.hidden
    )


def head_s(gpu: Accelerator, model: Architecture, tokens: float, software: Software, tp: int = 1) -> LayerTime:
    """The language-model head and its loss, a third of whose passes over the logits are the backward pass's."""
    matmul = matmul_s(gpu, tokens, model.hidden, model.vocab / tp)
    loss = tokens * model.vocab / tp * software.loss_bytes_per_logit / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    return LayerTime(matmul + loss * 2 / 3, BACKWARD_FLOPS * matmul + loss / 3)


def gradient_s(gpu: Accelerator, elements: float) -> float:
    """A micro-batch's weight gradients of `elements`: bf16 read, the fp32 sums read and written."""
    return elements * (2 + 4 + 4) / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)


def optimizer_s(gpu: Accelerator, elements: float) -> float:
    """AdamW on `elements` of one GPU: master, moments and gradient read, all but the last written, a bf16 copy."""
    return elements * (4 * 4 + 3 * 4 + 2 + 8) / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
