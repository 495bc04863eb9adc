"""How long one kernel computes: matmuls by shape, grouped GEMMs by rows per expert, attention, memory-bound ops.

A matmul reaches its GPU's large-matmul efficiency less what tiles waste on short dimensions, and never beats the
memory it moves. Constants are physical and shared by all models; they were chosen with published runs in sight
(benchmarks/planner_accuracy.py), never for one of them. Those that a GPU can measure are fields of its `Accelerator`.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.base.hardware import Accelerator
from recipe.planner.architecture import Architecture

BF16 = 2
TILE = 128.0  # rows and columns of an output tile, elements of the inner dimension until the pipeline is full
BACKWARD_FLOPS = 2.0  # of the forward's, for a matmul: the gradients of input and weight
ATTENTION_BACKWARD_FLOPS = 2.5  # of the forward's, for flash attention: the same, and the scores once more


@dataclass(frozen=True)
class Software:
    """What a framework's kernels move and launch beyond the matmuls, per layer. Bytes are those of the forward pass."""

    name: str
    attention_bytes_per_hidden: float  # per token and element of the mean of hidden and query width
    norm_bytes_per_hidden: float  # of these, the norms'
    mlp_bytes_per_intermediate: float  # per token and intermediate element: activation function and product
    weighted_bytes_per_intermediate: float  # the same of a routed expert, times the row's weight
    gather_bytes_per_hidden: float  # per assignment and hidden element: a token's row to its place
    permute_bytes_per_hidden: float  # rows by expert on their experts' rank, or back
    sum_bytes_per_hidden: float  # a token's rows added up
    row_gradient_bytes_per_hidden: float  # backward alone: gradients of rows from gate and up projections, added
    router_bytes_per_expert: float  # per token and expert: scores, top-k, losses
    kernels: int  # of a layer's forward pass
    moe_kernels: int  # more of them where experts are routed
    part_kernels: int  # of these, those that run for each part of an exchange
    host_reads: int  # of the forward pass of an MoE layer whose experts are on several ranks
    grouped_gemm: (
        float | None
    )  # efficiency over a plain matmul's; None: that of the accelerator, which runs this recipe's
    loss_bytes_per_logit: float  # forward and backward, beyond the matmuls


# Counted from the modules: each pass over a tensor is its bytes read and written (bf16 2, fp32 4).
# Eager, per element: two norms of 36 over the hidden width and one over queries and keys, rotary 24, residuals 12,
# attention's inputs and outputs 12; silu 4 and product 6; of a routed expert, all in fp32: two casts 6 each, sigmoid 8, two
# products 12 each, the weight 8, a cast back 6. A row picked 4 and masked 4, to its token's place and to its expert's; summed:
# picked 4, cast 6, masked 8, added 4. Two gradients of a row are added, 6. Kernels for each part of an exchange: five moves
# of rows or weights 6 each, their sum 7, the activation 7, grouped GEMMs 3, exchanges and their splits 17.
EAGER = Software("eager", 156.0, 108.0, 10.0, 58.0, 8.0, 8.0, 22.0, 6.0, 60.0, 80, 110, 64, 1, None, 30.0)
# With compute.compile, per element: three norms and rotary 4 each, residuals and attention's inputs and outputs as before;
# the activation 6, a row's weight is one number; rows 4 each time they move, their sum 2; the loss reads logits twice and
# writes their gradient. A compiled function costs its host about 8 launches, for its guards (50 us): six of them and 20
# kernels, in MoE layers ten and 50; of these seven and 16 for each part of an exchange.
COMPILED = Software("compiled", 40.0, 12.0, 6.0, 6.0, 4.0, 4.0, 2.0, 6.0, 40.0, 68, 130, 72, 1, None, 8.0)
# Fused kernels of Megatron-LM and TransformerEngine: each norm, rotary, activation and move of rows reads and writes once;
# gate and up are one matmul.
FUSED = Software("fused", 36.0, 12.0, 6.0, 6.0, 4.0, 4.0, 2.0, 0.0, 24.0, 40, 70, 30, 2, 0.92, 30.0)


@dataclass(frozen=True)
class PassTime:
    """Seconds on one GPU for one micro-batch, without communication."""

    forward_s: float
    backward_s: float


def tile_share(rows: float, inner: float, columns: float) -> float:
    """Of a large matmul's efficiency, what tiles leave to one of [rows, inner] x [inner, columns]."""
    return (rows / (rows + TILE / 2)) * (columns / (columns + TILE)) * (inner / (inner + TILE))


def matmul_s(
    gpu: Accelerator, rows: float, inner: float, columns: float, *, grouped_over: float = 1.0, grouped_gemm: float = 1.0
) -> float:
    """Seconds of a bf16 matmul [rows, inner] x [inner, columns]; of `grouped_over` equal ones if more than one."""
    if rows <= 0:
        return 0.0
    efficiency = gpu.matmul_efficiency * tile_share(rows, inner, columns) * (grouped_gemm if grouped_over > 1 else 1.0)
    compute_s = 2.0 * rows * inner * columns / (gpu.bf16_flops * efficiency)
    moved = BF16 * (rows * inner + inner * columns + rows * columns)
    return grouped_over * max(compute_s, memory_s(gpu, moved))


def attention_flops(tokens: float, seq_length: int, width: float) -> float:
    """Of causal flash attention, forward: two matmuls of 2 FLOPs over half the sequence."""
    return tokens * 2 * 2 * width * (seq_length / 2)


def attention_s(gpu: Accelerator, tokens: float, seq_length: int, width: float) -> float:
    """Seconds of causal flash attention, forward."""
    efficiency = gpu.attention_efficiency * seq_length / (seq_length + gpu.attention_half)
    return attention_flops(tokens, seq_length, width) / (gpu.bf16_flops * efficiency)


def memory_s(gpu: Accelerator, moved_bytes: float) -> float:
    """Seconds of kernels that are bound by the memory they move."""
    return moved_bytes / (gpu.hbm_bytes_per_s * gpu.hbm_efficiency)


def head_s(gpu: Accelerator, model: Architecture, tokens: float, software: Software, tp: int = 1) -> PassTime:
    """The language-model head and its loss, a third of whose passes over the logits are the backward pass's."""
    matmul = matmul_s(gpu, tokens, model.hidden, model.vocab / tp)
    loss = memory_s(gpu, tokens * model.vocab / tp * software.loss_bytes_per_logit)
    return PassTime(matmul + loss * 2 / 3, BACKWARD_FLOPS * matmul + loss / 3)


def gradient_s(gpu: Accelerator, elements: float) -> float:
    """A micro-batch's weight gradients of `elements`: bf16 read, the fp32 sums read and written."""
    return memory_s(gpu, elements * (2 + 4 + 4))


def optimizer_s(gpu: Accelerator, elements: float) -> float:
    """AdamW on `elements` of one GPU: master, moments and gradient read, all but the last written, a bf16 copy."""
    return memory_s(gpu, elements * (4 * 4 + 3 * 4 + 2 + 8))
