"""How long one GPU computes: matmuls by shape, grouped GEMMs by rows per expert, attention, memory-bound ops.

A matmul reaches its GPU's large-matmul efficiency less what tiles waste on short dimensions, and never beats the
memory it moves. Constants are physical and shared by all GPUs and models; none is fitted to a row of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import Accelerator
from recipe.planner.architecture import Architecture

BF16 = 2
TILE = 128.0  # rows and columns of an output tile, elements of the inner dimension until the pipeline is full
GROUPED_GEMM = 0.85  # of a plain matmul: tile scheduling over experts, MegaBlocks 98.6% of cuBLAS at best (arXiv 2211.15841)
HBM_EFFICIENCY = 0.75  # of the datasheet's bandwidth, which streaming kernels of many small rows reach
LAUNCH_S = 6e-6  # between the starts of two kernels of an eager framework on one CPU thread
BACKWARD_FLOPS = 2.0  # of the forward's, for a matmul: the gradients of input and weight
HOST_READ_S = 60e-6  # a value that the host waits for, such as the split sizes of an all-to-all


@dataclass(frozen=True)
class Software:
    """What a framework's kernels move and launch beyond the matmuls, per layer."""

    name: str
    attention_bytes_per_hidden: float  # bytes moved per token and hidden element: norms, rotary, residual, copies
    mlp_bytes_per_intermediate: float  # per token and intermediate element: activation function and product
    routed_bytes_per_hidden: float  # per assignment and hidden element: permute, exchange buffers, weigh, sum
    router_bytes_per_expert: float  # per token and expert: scores, top-k, losses
    kernels: int  # of a layer's forward pass
    host_reads: int  # of an MoE layer's forward pass


# Counted from the modules: each pass over a tensor is its bytes read and written (bf16 2, fp32 4).
EAGER = Software("eager", 2 * 34.0 + 20.0, 2 * 10.0, 2 * 9.0, 60.0, 110, 2)
FUSED = Software("fused", 2 * 14.0 + 10.0, 2 * 5.0, 2 * 7.0, 24.0, 45, 1)


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer on one GPU for one micro-batch, without communication."""

    forward_s: float
    backward_s: float


def matmul_s(gpu: Accelerator, rows: float, inner: float, columns: float, *, grouped_over: float = 1.0) -> float:
    """Seconds of a bf16 matmul [rows, inner] x [inner, columns]; of `grouped_over` equal ones if more than one."""
    if rows <= 0:
        return 0.0
    shape = (rows / (rows + TILE / 2)) * (columns / (columns + TILE)) * (inner / (inner + TILE))
    efficiency = gpu.matmul_efficiency * shape * (GROUPED_GEMM if grouped_over > 1 else 1.0)
    compute_s = 2.0 * rows * inner * columns / (gpu.bf16_flops * efficiency)
    moved = BF16 * (rows * inner + inner * columns + rows * columns)
    return grouped_over * max(compute_s, moved / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY))


def attention_s(gpu: Accelerator, tokens: float, seq_length: int, width: float, efficiency: float) -> float:
    """Seconds of causal flash attention, forward; two matmuls of 2 FLOPs over half the sequence."""
    return tokens * 2 * 2 * width * (seq_length / 2) / (gpu.bf16_flops * efficiency)


def layer_s(
    gpu: Accelerator,
    model: Architecture,
    software: Software,
    *,
    moe: bool,
    tokens: float,
    seq_length: int,
    tp: int = 1,
    expert_ranks: int = 1,
    expert_tp: int = 1,
    imbalance: float = 1.0,
    flash: bool = True,
) -> LayerTime:
    """One layer's compute.

    Args:
        moe: whether its MLP is routed.
        tokens: of a tensor-parallel group's micro-batch.
        tp, expert_ranks, expert_tp: ranks that split attention, experts, and each expert.
        imbalance: rows of the busiest rank over the mean.
        flash: attention without the score matrix in memory.
    """
    D = model.hidden
    matmuls = sum(matmul_s(gpu, tokens, a, max(1.0, b / tp)) for a, b in model.attention_matmuls)
    attention = attention_s(gpu, tokens, seq_length, model.attention_width / tp, gpu.attention_efficiency)
    moved = software.attention_bytes_per_hidden * tokens * (D + model.attention_width) / 2 / tp
    if not flash:  # scores and probabilities written and read, in bf16 and fp32, with mask, softmax and dropout
        moved += tokens * seq_length * model.heads / tp * 5 * BF16
        attention = 2 * matmul_s(gpu, seq_length, 128, seq_length) * tokens / seq_length * model.heads / tp
    intermediate = 0.0
    reads = 0
    if moe:
        rows = tokens / tp * model.top_k * expert_tp * imbalance  # of this rank's experts
        local = model.experts / expert_ranks
        width = model.expert_intermediate / expert_tp
        for inner, columns in [(D, width)] * (model.mlp_matrices - 1) + [(width, D)]:
            matmuls += matmul_s(gpu, rows / local, inner, columns, grouped_over=local)
        intermediate += rows * width
        if model.shared_intermediate:
            matmuls += _mlp_s(gpu, model, tokens, model.shared_intermediate / tp)
            intermediate += tokens * model.shared_intermediate / tp
        moved += software.routed_bytes_per_hidden * rows * D
        moved += software.router_bytes_per_expert * tokens / tp * model.experts
        reads = software.host_reads
    else:
        matmuls += _mlp_s(gpu, model, tokens, model.dense_intermediate / tp)
        intermediate += tokens * model.dense_intermediate / tp
    moved += software.mlp_bytes_per_intermediate * intermediate
    memory = moved / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    launches = software.kernels * LAUNCH_S
    waits = reads * HOST_READ_S
    return LayerTime(
        max(matmuls + attention + memory, launches) + waits,
        max(BACKWARD_FLOPS * matmuls + 2.5 * attention + 2 * memory, 2 * launches),
    )


def _mlp_s(gpu: Accelerator, model: Architecture, tokens: float, intermediate: float) -> float:
    return (model.mlp_matrices - 1) * matmul_s(gpu, tokens, model.hidden, intermediate) + matmul_s(
        gpu, tokens, intermediate, model.hidden
    )


def head_s(gpu: Accelerator, model: Architecture, tokens: float, tp: int = 1) -> LayerTime:
    """The language-model head and its loss: logits in fp32 are written and read a few times."""
    matmul = matmul_s(gpu, tokens, model.hidden, model.vocab / tp)
    softmax = tokens * model.vocab / tp * 4 * 5 / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    return LayerTime(matmul + softmax, BACKWARD_FLOPS * matmul + softmax / 2)


def optimizer_s(gpu: Accelerator, elements: float) -> float:
    """AdamW on `elements` of one GPU: master, moments and gradient read, all but the last written, a bf16 copy."""
    return elements * (4 * 4 + 3 * 4 + 2 + 8) / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
