"""Run by test_fusion.py: the kernels that inductor makes of our fusible functions for GPUs, on a machine without one.

Arguments: compute capabilities, the first of which inductor is told to write for; Triton compiles what it wrote for each.
Writes JSON to standard output: for each function and pass the kernels, and what else is called.

torch.compile traces each function on tensors without memory, of the flagship's shapes in training, on device "cpu", whose
backward pass autograd can run here; the graphs are then moved to "cuda" and lowered to Triton by inductor.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from recipe.model import loss, modeling
from recipe.model.fusion import fuse
from recipe.model.routing import balance, dispatch, quantile, router
from tests.fake_cuda import device_guard
from tests.no_gpu import NoGpu

SHAPE = json.loads(Path("recipe/configs/models/30b-a3b/config.json").read_text(encoding="utf-8"))
B, S, CHUNK = 2, 4096, 2048  # a micro-batch of the flagship's plans, and its chunk of the loss
D, H, d, V_ = (SHAPE[name] for name in ("hidden_size", "num_attention_heads", "head_dim", "vocab_size"))
E, K, F = (SHAPE[name] for name in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"))
T, N = B * S, B * S * K + E * dispatch.ROW_ALIGNMENT
# An A100's: multiprocessors, registers and threads of each, threads of a block and of a warp.
A100 = {"multi_processor_count": 108, "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048,
        "max_threads_per_block": 1024, "warp_size": 32}  # fmt: skip


def bf16(*size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.bfloat16, requires_grad=True)


def fp32(*size: int) -> torch.Tensor:
    return torch.empty(size, requires_grad=True)


def number(*size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int64)


def position(*size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int32)


def calls() -> dict[str, Callable[[], Any]]:
    """Each fusible function as training calls it."""
    return {
        "rms_norm": lambda: modeling.rms_norm(bf16(B, S, D), bf16(D), 1e-5),
        "rotate": lambda: modeling.rotate(
            bf16(B, S, H, d).transpose(1, 2), bf16(B, S, d).detach(), bf16(B, S, d).detach()
        ),
        "swiglu": lambda: modeling.swiglu(bf16(T, F), bf16(T, F)),
        "loss_and_gradient": lambda: loss.loss_and_gradient(bf16(CHUNK, V_).detach(), number(CHUNK)),
        "scores_and_choice": lambda: router.scores_and_choice(fp32(T, E), fp32(E).detach(), "sigmoid", K, 1, 1),
        "score_shares": lambda: router.score_shares(fp32(T, E)),
        "weights_of": lambda: router.weights_of(
            fp32(T, E), number(T, K), norm_topk_prob=True, routed_scaling_factor=2.5
        ),
        "load_balancing_loss": lambda: balance.load_balancing_loss(fp32(T, E), number(T, K), fp32(T).detach(), S),
        "margin_places": lambda: quantile.margin_places(
            fp32(T, E).detach(), number(T, K), torch.empty(T, dtype=torch.bool)
        ),
        "router_z_terms": lambda: balance.router_z_terms(fp32(T, E)),
        "_spread": lambda: dispatch._spread(bf16(T, D).detach(), position(N), K),
        "_summed": lambda: dispatch._summed(bf16(N, D).detach(), position(T, K)),
        "_weighted_swiglu": lambda: dispatch._weighted_swiglu(
            bf16(N, F).detach(), bf16(N, F).detach(), fp32(N).detach()
        ),
        "_weighted_swiglu_gradients": lambda: dispatch._weighted_swiglu_gradients(
            bf16(N, F).detach(), bf16(N, F).detach(), fp32(N).detach(), bf16(N, F).detach()
        ),
    }


def written_for_cuda(graph_module: torch.fx.GraphModule, inputs: list[Any]) -> str:
    """The code that inductor writes of a graph on CPU, as it does of the same on a GPU."""
    graph_module = copy.deepcopy(graph_module)
    for node in graph_module.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph_module.recompile()
    mode = next(value.fake_mode for value in inputs if isinstance(value, torch.Tensor))
    with device_guard(), mode:
        moved = [
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            if isinstance(value, torch.Tensor)
            else value
            for value in inputs
        ]
        traced = make_fx(graph_module)(*moved)
        with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            lowering = GraphLowering(traced, example_inputs=moved, shape_env=mode.shape_env)
            with V.set_graph_handler(lowering):
                lowering.run(*moved)
                return lowering.codegen()[0].value


def kernels_of(code: str) -> dict[str, str]:
    """Name and Triton source of each."""
    return dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL))


def launches_of(code: str) -> int:
    """How often the code launches a kernel of its own or calls torch, whose kernels are not counted."""
    body = code.split("def call(self, args):")[1].split("return (")[0]
    lines = [line for line in body.splitlines() if not line.strip().startswith("#")]
    return sum(
        bool(re.search(r"\.run\(|extern_kernels\.|torch\.ops\.aten\.[\w.]+\(|\.sum\(dim=0\)", line)) for line in lines
    )


def machine_code_bytes(name: str, source: str, capabilities: list[int], folder: Path) -> list[int]:
    """Of a kernel compiled for each."""
    path = folder / f"{abs(hash(source))}.py"  # Triton reads a kernel's source from its file
    path.write_text(source, encoding="utf-8")
    names: dict[str, Any] = {"__file__": str(path), "__name__": path.stem}
    exec(compile(source, str(path), "exec"), names)
    kernel = names[name]
    meta, config = kernel.triton_meta, kernel.configs[0]
    constants = {**meta["constants"], **config.kwargs}
    sizes = []
    for capability in capabilities:
        compiled = triton.compile(
            ASTSource(kernel.fn, meta["signature"], constants, meta["configs"][0]),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        )
        sizes.append(len(compiled.asm["cubin"]))
    return sizes


def main() -> None:
    folder, capabilities = Path(sys.argv[1]), [int(argument) for argument in sys.argv[2:]]
    first = capabilities[0]
    properties = DeviceProperties("cuda", 0, cc=first, major=first // 10, **A100)
    triton.runtime.driver.set_active(NoGpu(first))
    results: dict[str, Any] = {}

    def lowered(name: str, graph_module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        code = written_for_cuda(graph_module, inputs)
        sizes = {
            kernel: machine_code_bytes(kernel, source, capabilities, folder)
            for kernel, source in kernels_of(code).items()
        }
        results[name] = {"launches": launches_of(code), "machine_code_bytes": sizes}
        return make_boxed_func(graph_module.forward)

    def without_gpu(function: Callable[..., Any], **options: Any) -> Any:
        name = function.__name__
        forward = partial(lowered, name)
        backend = aot_autograd(
            fw_compiler=forward, inference_compiler=forward, bw_compiler=partial(lowered, f"{name} backward"),
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
        )  # fmt: skip
        return compile_by_torch(function, backend=backend, **options)

    compile_by_torch = torch.compile
    with (
        mock.patch.object(torch, "compile", without_gpu),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(first, 10)),
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
        mock.patch.object(DeviceProperties, "create", return_value=properties),
        FakeTensorMode(),
    ):
        fuse(True)
        for call in calls().values():
            outputs = call()
            outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
