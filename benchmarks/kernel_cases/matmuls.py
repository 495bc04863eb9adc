"""Plain and grouped matmuls at the shapes of a model's layers.

Legend: N rows of all experts, E experts of a rank, I inner dimension, C columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.kernel_cases.measuring import (
    BOTH,
    CUDA,
    DEVICE,
    DTYPE,
    FORWARD,
    PASSES,
    Case,
    NotPossible,
    Sizes,
    pass_of,
    random,
    timed,
)
from recipe.base.settings import Compute
from recipe.model.routing.dispatch import grouped_positions

BUSIEST = 2.0  # rows of the busiest expert over the mean, where rows are skewed
TORCH, TRITON, LOOP, PLAIN = "torch", "deepspeed", "loop of matmuls", "one matmul of the same FLOPs"


def matmul_flops(rows: int, inner: int, columns: int, passes: str = FORWARD) -> int:
    """A product and a sum for each element; the gradients of both operands are two more matmuls of the same size."""
    return 2 * rows * inner * columns * (3 if passes == BOTH else 1)


def matmul_bytes(rows: int, inner: int, columns: int, passes: str = FORWARD, matrices: int = 1) -> int:
    """Each operand read and each result written once, in each of the matmuls; `matrices` share the rows."""
    elements = rows * inner + matrices * inner * columns + rows * columns
    return DTYPE.itemsize * elements * (3 if passes == BOTH else 1)


def dense_shapes(sizes: Sizes) -> dict[str, tuple[int, int, int]]:
    """Rows, inner dimension and columns of the matmuls that are not routed, by their modules' names."""
    shape, tokens = sizes.shape, sizes.tokens
    D, V, head_dim = shape.hidden_size, shape.vocab_size, shape.head_dim
    query, key = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    shared = shape.moe_intermediate_size * shape.n_shared_experts
    return {
        "square": (sizes.square,) * 3,
        "q_proj": (tokens, D, query),
        "k_proj or v_proj": (tokens, D, key),
        "o_proj": (tokens, query, D),
        "shared expert, gate_proj or up_proj": (tokens, D, shared),
        "shared expert, down_proj": (tokens, shared, D),
        "head": (tokens, D, V),
        "head, a chunk of the loss": (min(tokens, Compute().loss_chunk_tokens), D, V),
    }


def matmul_cases(sizes: Sizes) -> Iterator[Case]:
    for name, (rows, inner, columns) in dense_shapes(sizes).items():

        def measure(rows: int = rows, inner: int = inner, columns: int = columns) -> dict[str, Any]:
            x, weight = random(rows, inner), random(columns, inner, scale=inner**-0.5)
            return timed(lambda: F.linear(x, weight))

        yield Case("matmul", name, {"rows": rows, "inner": inner, "columns": columns}, measure,
                   flops=matmul_flops(rows, inner, columns), moved=matmul_bytes(rows, inner, columns))  # fmt: skip


def expert_rows(rows: int, experts: int, busiest: float = 1.0) -> list[int]:
    """So many rows over experts: equally, or rising steadily to `busiest` times the mean (at most 2, where the first has none)."""
    assert 1.0 <= busiest <= 2.0
    if experts == 1:
        return [rows]
    rise = [2.0 - busiest + 2 * (busiest - 1.0) * expert / (experts - 1) for expert in range(experts)]
    ends = [round(rows * part / sum(rise)) for part in itertools.accumulate(rise)]
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


class Grouped:
    """Rows by expert, padded as the recipe pads them, and the weights of one of the experts' matrices."""

    def __init__(self, counts: Sequence[int], inner: int, columns: int):
        counts_E = torch.tensor(counts, device=DEVICE)
        experts_A = torch.arange(len(counts), device=DEVICE).repeat_interleave(counts_E, output_size=sum(counts))
        _, assignment_N, sizes_E = grouped_positions(experts_A.unsqueeze(1), counts_E)
        self.offsets_E = sizes_E.cumsum(0, dtype=torch.int32)
        self.sizes_E = sizes_E
        self.x_NI = random(assignment_N.numel(), inner, requires_grad=True)
        self.weight_ECI = random(len(counts), columns, inner, scale=inner**-0.5, requires_grad=True)

    def grouped_mm(self) -> torch.Tensor:
        """As AutoEP calls it."""
        return torch._grouped_mm(self.x_NI, self.weight_ECI.transpose(-2, -1), offs=self.offsets_E)

    def triton(self) -> torch.Tensor:
        from deepspeed.ops.triton_ops.group_gemm_triton import group_gemm_triton

        return group_gemm_triton(self.x_NI, self.weight_ECI, self.offsets_E, trans_b=True)

    @cached_property
    def sizes(self) -> list[int]:
        return self.sizes_E.tolist()

    def loop(self) -> torch.Tensor:
        """As AutoEP's sequential experts do, without their wait for the number of rows, which is known here."""
        rows = self.x_NI[: sum(self.sizes)].split(self.sizes)
        return torch.cat([F.linear(x, weight) for x, weight in zip(rows, self.weight_ECI, strict=True)])


class OneMatmul:
    """All rows by one matrix: the same FLOPs without the experts."""

    def __init__(self, counts: Sequence[int], inner: int, columns: int):
        self.x_NI = random(sum(counts), inner, requires_grad=True)
        self.weight_ECI = random(columns, inner, scale=inner**-0.5, requires_grad=True)

    def plain(self) -> torch.Tensor:
        return F.linear(self.x_NI, self.weight_ECI)


METHODS: dict[str, Callable[[Any], torch.Tensor]] = {
    TORCH: Grouped.grouped_mm, TRITON: Grouped.triton, LOOP: Grouped.loop, PLAIN: OneMatmul.plain,
}  # fmt: skip


def measure_grouped(name: str, counts: Sequence[int], inner: int, columns: int, passes: str) -> dict[str, Any]:
    from deepspeed.accelerator import get_accelerator

    if name == TRITON and not CUDA:
        raise NotPossible("DeepSpeed's Triton kernel needs a GPU")
    operands = (OneMatmul if name == PLAIN else Grouped)(counts, inner, columns)
    found = timed(pass_of(passes, lambda: METHODS[name](operands), [operands.x_NI, operands.weight_ECI]))
    chosen = {True: TRITON, False: TORCH}[bool(get_accelerator().prefer_triton_grouped_mm())]
    return {**found, "recipe": name == chosen}


def prefers_triton() -> bool:
    """Whether AutoEP takes its Triton kernel here (`prefer_triton_grouped_mm` of accelerator/cuda_accelerator.py, 0.19.8)."""
    return CUDA and torch.cuda.get_device_capability()[0] < 9


NOTES = {
    TORCH: "what AutoEP and so the recipe runs on H100 and H200 (compute capability 9.0 and above)",
    TRITON: "what AutoEP and so the recipe runs on A100 (compute capability 8.x)",
    LOOP: "AutoEP's experts with use_grouped_mm false; the recipe does not run it",
    PLAIN: "all rows by one matrix; no layer computes it",
}


def grouped_cases(sizes: Sizes) -> Iterator[Case]:
    """Gate and up projections of balanced and of skewed rows by all contenders, then down projections by those in use."""
    D, width, experts = sizes.shape.hidden_size, sizes.shape.moe_intermediate_size, sizes.shape.n_routed_experts
    in_use = TRITON if prefers_triton() else TORCH
    for ep, busiest, passes, name in itertools.product((1, sizes.ep), (1.0, BUSIEST), PASSES, METHODS):
        if busiest == 1.0 or name != PLAIN:  # which knows of no experts
            yield grouped_case(sizes.assignments, experts // ep, ep, (D, width), busiest, passes, name)
    for ep, passes, name in itertools.product((1, sizes.ep), PASSES, (in_use, PLAIN)):
        yield grouped_case(sizes.assignments, experts // ep, ep, (width, D), 1.0, passes, name)


def grouped_case(
    rows: int, experts: int, ep: int, matrix: tuple[int, int], busiest: float, passes: str, name: str
) -> Case:
    inner, columns = matrix
    counts = expert_rows(rows, experts, busiest)
    shape = {"ep": ep, "experts": experts, "rows": rows, "inner": inner, "columns": columns,
             "rows_of_busiest": max(counts), "busiest_over_mean": busiest}  # fmt: skip
    # Triton compiles each of its six configurations, for each number of experts and each of the three matmuls.
    tuned_s = (8.0 if passes == FORWARD else 16.0) if name == TRITON and busiest == 1.0 else 1.0
    late = 0 if name != TRITON or prefers_triton() else 1 if passes == FORWARD else 3
    matrices = 1 if name == PLAIN else experts
    return Case(
        "grouped_gemm", name, shape, lambda: measure_grouped(name, counts, inner, columns, passes), passes,
        flops=matmul_flops(rows, inner, columns, passes), moved=matmul_bytes(rows, inner, columns, passes, matrices),
        note=NOTES[name], cost_s=tuned_s, late=late,
    )  # fmt: skip
