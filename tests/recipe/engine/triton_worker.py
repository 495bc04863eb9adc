"""Run by test_triton_kernels.py: the Triton kernels that DeepSpeed's expert-parallel layer launches, on a machine without a GPU.

Arguments: compute capabilities, such as 80, to compile for; or `run` and cases as JSON, with TRITON_INTERPRET=1, to compare
results with torch's. The kernels are launched by DeepSpeed's own functions, so their types, strides and constants are those
of a training step. Writes JSON to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import nn
from triton.backends import backends
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from tests.no_gpu import NoGpu

# DeepSpeed defines its kernels only where Triton has a GPU when their modules are imported, for the first time or anew.
backends["nvidia"].driver.is_active = staticmethod(lambda: True)
for imported in [name for name in sys.modules if name.startswith(("deepspeed.ops.triton_ops", "deepspeed.moe.ep_"))]:
    del sys.modules[imported]
experts_module = import_module("recipe.engine.moe.experts")
dispatch = import_module("recipe.model.routing.dispatch")
group_gemm = import_module("deepspeed.ops.triton_ops.group_gemm_triton")

FLAGSHIP = json.loads(Path("recipe/configs/models/30b-a3b/config.json").read_text(encoding="utf-8"))
RANKS = 8  # of an expert-parallel group
SOURCE_ROWS = 768  # the number is no constant of a kernel, and 16 divides it as it divides a step's


def compile_launches() -> tuple[NoGpu, list[dict[str, Any]]]:
    """From now on a launch compiles and runs nothing; of an autotuned kernel the smallest and the largest configuration."""
    driver, compiled, results = NoGpu(), [], []
    run = JITFunction.run

    def compile_one(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if not any(kernel is other for other in compiled):
            compiled.append(kernel)
            results.append(
                {"kernel": kernel.metadata.name, "capability": kernel.metadata.target.arch,
                 "shared_bytes": kernel.metadata.shared, "machine_code_bytes": len(kernel.asm["cubin"])}
            )  # fmt: skip

    def compile_ends(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        for config in (self.configs[0], self.configs[-1]):
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    JITFunction.run = compile_one
    Autotuner.run = compile_ends
    triton.runtime.driver.set_active(driver)
    return driver, results


def experts_of(hidden: int, width: int, number: int, dtype: torch.dtype) -> nn.Module:
    experts = experts_module.RecipeExperts(hidden, width, number).to(dtype)
    experts.use_triton_grouped_mm = True  # what an A100 prefers; DeepSpeed asks the GPU
    return experts


def moved_and_computed(
    rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, experts: nn.Module
) -> torch.Tensor:
    """Rows by source rank to the experts and back, as a layer moves and computes them; counts [ranks, experts]."""
    position_N, received_M, sizes = dispatch.received_positions(counts, rows.shape[0])
    where = position_N, received_M
    weight_M = dispatch.dispatch(weights.view(-1, 1), *where, 1).squeeze(1)
    return dispatch.combine(experts.computed(dispatch.dispatch(rows, *where, 1), weight_M, sizes), *where, 1)


def compiled(capabilities: list[int]) -> list[dict[str, Any]]:
    driver, results = compile_launches()
    hidden, number = FLAGSHIP["hidden_size"], FLAGSHIP["n_routed_experts"] // RANKS
    rows = torch.empty(SOURCE_ROWS, hidden, dtype=torch.bfloat16, requires_grad=True)
    counts = torch.full((RANKS, number), SOURCE_ROWS // (RANKS * number))
    experts = experts_of(hidden, FLAGSHIP["moe_intermediate_size"], number, torch.bfloat16)
    weights = torch.empty(SOURCE_ROWS)
    for capability in capabilities:
        driver.capability = capability
        out = moved_and_computed(rows, weights, counts, experts)
        out.backward(torch.empty_like(out))
    return results


def loop_over_experts(
    rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, experts: nn.Module
) -> torch.Tensor:
    """What `moved_and_computed` is to give: rows stand by source rank, then by expert."""
    out = []
    for segment, expert in zip(rows.split(counts.flatten().tolist()), range(counts.numel()), strict=True):
        w1, w2, w3 = (w[expert % counts.shape[1]] for w in (experts.w1, experts.w2, experts.w3))
        out.append((F.silu(segment @ w1.T) * (segment @ w3.T)) @ w2.T)
    return torch.cat(out) * weights.unsqueeze(1)


def gradients_of(out: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return list(torch.autograd.grad((out * weight).sum(), inputs))


def compared(counts: torch.Tensor, hidden: int, width: int) -> float:
    """The largest difference of outputs and gradients to those of torch, over the largest value."""
    generator = torch.Generator().manual_seed(0)
    experts = experts_of(hidden, width, counts.shape[1], torch.float32)
    for weight in experts.parameters():
        weight.data.normal_(0, hidden**-0.5, generator=generator)
    rows = torch.randn(int(counts.sum()), hidden, generator=generator, requires_grad=True)
    weights = torch.rand(len(rows), generator=generator, requires_grad=True)

    def results_of(compute: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = compute(rows, weights, counts, experts)
        return out, *gradients_of(out, (rows, weights, *experts.parameters()))

    plain = results_of(loop_over_experts)
    found = [results_of(moved_and_computed)]
    if counts.shape[0] == 1:  # rows of one source stand by expert already, in groups of any size
        found.append(results_of(lambda rows, weights, counts, experts: experts.computed(rows, weights, counts[0])))
    return max(
        ((ours - expected).abs().max() / expected.abs().max()).item()
        for results in found
        for ours, expected in zip(results, plain, strict=True)
    )


def main() -> None:
    assert group_gemm._TRITON_AVAILABLE
    if sys.argv[1] == "run":
        # One block of each: the others differ in size alone.
        for kernel in (group_gemm._group_gemm_kernel, group_gemm._group_gemm_dw_kernel):
            kernel.configs = kernel.configs[:1]
        cases = json.loads(sys.argv[2])
        result: Any = [compared(torch.tensor(case["counts"]), case["hidden"], case["width"]) for case in cases]
    else:
        result = compiled([int(capability) for capability in sys.argv[1:]])
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
