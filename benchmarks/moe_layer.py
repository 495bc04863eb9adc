#!/usr/bin/env python3
"""Our MoE layer against what a user would pick instead; its cost when routing is skewed; the cost of its metrics.

layer: one MoE layer forward and backward, all contenders in one process in turn, median of --repeats.
skew: two ranks, expert parallel; a growing share of the tokens wants the same experts, which live on one rank.
parts: two ranks, expert parallel; the tokens' rows are exchanged at once, or in two parts of which one is under way while the
  experts compute the other. Both ranks compute on the CPU that also carries their exchanges, so little can be hidden there.
metrics: whole training steps of the tiny model, observed and not observed in turn.
Prints JSON. On a GPU when there is one (layer and metrics), in bf16; on CPU in fp32, one thread a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

from launch.cluster.hosts import free_port  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.model_shape import ModelShape  # noqa: E402
from recipe.base.run_config.routing import Routing  # noqa: E402
from recipe.base.settings import Compute, Optimizer  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.huggingface.architectures import export_config  # noqa: E402

CUDA = torch.cuda.is_available()
SHAPES = {  # tokens, hidden, expert width, experts, top-k
    "cpu": {"tokens": 2048, "hidden": 256, "width": 256, "experts": 32, "top_k": 4},
    "gpu": {"tokens": 16384, "hidden": 2048, "width": 768, "experts": 128, "top_k": 8},
}
DROP = {"capacity": {"mode": "drop", "factor": 1.0}}
REROUTE = {"capacity": {"mode": "reroute", "factor": 1.0}}
SKEWS = (0.0, 0.5, 1.0)
PARTS = (1, 2)
KEPT = ("gate_up", "shared_gate_up", "rows")  # of an MoE layer without its attention


def model_shape(shape: dict[str, int]) -> ModelShape:
    sizes = {
        "vocab_size": 8, "hidden_size": shape["hidden"], "intermediate_size": 8,
        "moe_intermediate_size": shape["width"], "num_hidden_layers": 1, "first_k_dense_replace": 0,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "n_shared_experts": 1,
        "n_routed_experts": shape["experts"], "num_experts_per_tok": shape["top_k"],
        "max_position_embeddings": shape["tokens"],
    }  # fmt: skip
    return ModelShape(model_type="recipe_moe", **sizes)


def config_of(shape: dict[str, int]) -> Any:
    from recipe.model import RecipeMoeConfig

    return RecipeMoeConfig.from_shape(model_shape(shape))


def ds_config_of(world: int, stage: int, accumulation: int = 1, micro_batch: int = 1) -> dict[str, Any]:
    config = load_json(ROOT / "ds_configs" / "cpu_2.json")
    config.update(train_batch_size=world * micro_batch * accumulation, train_micro_batch_size_per_gpu=micro_batch,
                  gradient_accumulation_steps=accumulation)  # fmt: skip
    config["expert_parallel"]["autoep_size"] = world
    config["zero_optimization"]["stage"] = stage
    if CUDA:
        config["bf16"] = {"enabled": True}
    return config


def autoep_layer(shape: dict[str, int], routing: dict[str, Any] | None, parts: int = 1) -> tuple[nn.Module, Any]:
    """An expert-parallel layer built by the engine: ours with its control, or AutoEP's as it comes for `routing` None.

    Args:
        parts: in which ours exchanges its rows.
    """
    from transformers.initialization import no_init_weights

    from recipe.engine import build as engine_module
    from recipe.engine.build import build_engine, control_routing
    from recipe.engine.moe.routing_control import MicroBatch

    ours = engine_module.recipe_layers
    if routing is None:
        engine_module.recipe_layers = nullcontext  # type: ignore[assignment]
    try:
        with no_init_weights():  # the engine draws every weight; transformers would before, on one core
            engine = build_engine(
                config_of(shape),
                ds_config_of(dist.get_world_size(), 0) | {"recipe": {"exchange_parts": parts}},
                seed=0,
                optimizer=Optimizer(),
                compute=Compute(),
            )
    finally:
        engine_module.recipe_layers = ours
    layer = engine.module.model.layers[0].mlp.train()
    if routing is None:
        return layer, None
    control = control_routing(
        engine, Routing.model_validate(routing), seq_length=shape["tokens"], sources=["en", "zh"], seed=0
    )
    valid = torch.ones(shape["tokens"], dtype=torch.bool, device=engine.device)
    control.begin_step(1, token_weight=torch.tensor(1.0 / shape["tokens"], device=engine.device), observing=False)
    control.begin_micro_batch(MicroBatch(0, valid, torch.zeros_like(valid, dtype=torch.int64)))
    return layer, control


def glm4_layer(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> nn.Module:
    from transformers import Glm4MoeConfig
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE

    config = Glm4MoeConfig(
        **export_config(model_shape(shape), dtype="float32", max_position_embeddings=shape["tokens"])
    )
    config._experts_implementation = "grouped_mm"
    with device:  # a CPU would draw the weights of a hundred experts for seconds
        layer = Glm4MoeMoE(config)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer.to(device, dtype)


def deepspeed_layer(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The classic MoE layer: top-k gating with capacity 1.25 and dropping; a shared expert beside it, as the others have."""
    from deepspeed.moe.layer import MoE

    from recipe.model.modeling import Mlp

    class WithShared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            expert = Mlp(shape["hidden"], shape["width"])
            self.moe = MoE(
                shape["hidden"], expert, num_experts=shape["experts"], k=shape["top_k"], capacity_factor=1.25
            )
            self.moe.set_deepspeed_parallelism()
            self.shared = Mlp(shape["hidden"], shape["width"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.moe(x)[0] + self.shared(x)

    return WithShared().to(device, dtype)


def forward_backward(layer: nn.Module, x: torch.Tensor) -> None:
    layer(x).square().mean().backward()
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def timed(act: Callable[[], None]) -> float:
    if CUDA:
        torch.cuda.synchronize()
    start = time.perf_counter()
    act()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def recomputed(layer: nn.Module, kept: tuple[str, ...]) -> nn.Module:
    """The layer as a recomputed decoder layer has it, which keeps the results of these names."""
    from torch.utils.checkpoint import checkpoint

    from recipe.model.recompute import contexts

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.layer, x, use_reentrant=False, context_fn=contexts(kept))

    return Recomputed()


def alternated(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, all in turn, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(repeats + 2):
        for name, act in contenders.items():
            spent = timed(act)
            if round_number >= 2:
                seconds[name].append(spent)
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def layer_part(repeats: int) -> dict[str, Any]:
    from recipe.model.fusion import fused

    shape = SHAPES["gpu" if CUDA else "cpu"]
    device = torch.device("cuda" if CUDA else "cpu")
    dtype = torch.bfloat16 if CUDA else torch.float32
    x = torch.randn(1, shape["tokens"], shape["hidden"], device=device, dtype=dtype, requires_grad=True)
    ours = autoep_layer(shape, {})[0]
    layers: dict[str, nn.Module] = {
        "ours": ours,
        "ours, compiled": autoep_layer(shape, {})[0],
        "ours, recomputed": recomputed(ours, ()),
        "ours, selective with all kept": recomputed(ours, KEPT),
        "ours, drop at 1.0": autoep_layer(shape, DROP)[0],
        "ours, reroute at 1.0": autoep_layer(shape, REROUTE)[0],
        "AutoEP": autoep_layer(shape, None)[0],
        "transformers Glm4MoeMoE, grouped_mm": glm4_layer(shape, device, dtype),
        "deepspeed.moe.layer.MoE": deepspeed_layer(shape, device, dtype),
    }

    def act(name: str) -> None:
        with fused(name.endswith("compiled")):
            forward_backward(layers[name], x)

    medians = alternated({name: partial(act, name) for name in layers}, repeats)
    return {
        "shape": shape,
        "precision": str(dtype).removeprefix("torch."),
        "milliseconds": {name: round(1e3 * m, 2) for name, m in medians.items()},
        "over_ours": {name: round(m / medians["ours"], 2) for name, m in medians.items()},
    }


def skew_worker(mode: str, skew: float, repeats: int) -> dict[str, Any]:
    """One rank's time, rows and memory with a share of the tokens at the same experts."""
    shape = SHAPES["cpu"]
    layer, _ = autoep_layer(shape, {"capacity": {"mode": mode, "factor": 1.0}})
    x = torch.randn(1, shape["tokens"], shape["hidden"])
    x[:, :, 0] = 0.0
    x[:, : int(skew * shape["tokens"]), 0] = 5.0
    x.requires_grad_()
    with torch.no_grad():
        layer.router.gate.weight[:, 0] = -1.0
        layer.router.gate.weight[: shape["top_k"], 0] = 1.0
    rows: list[int] = []
    layer.experts.register_forward_hook(
        lambda module, inputs, output: rows.append(int(sum(journey.sizes_E for journey in inputs[1]).max()))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        forward_backward(layer, x)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = torch.tensor([statistics.median(seconds[1:]), float(max(rows)), peak], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return {"milliseconds": round(1e3 * found[0].item(), 1), "rows_of_busiest_expert": int(found[1]),
            "peak_mib_of_busiest_rank": round(found[2].item(), 1)}  # fmt: skip


def parts_worker(repeats: int) -> dict[str, Any]:
    """Both ranks' time by the number of parts, and how far the parts' results and gradients are from those of one."""
    shape = SHAPES["cpu"]
    x = torch.randn(1, shape["tokens"], shape["hidden"], requires_grad=True)
    layers = {parts: autoep_layer(shape, {}, parts)[0] for parts in PARTS}  # of the same seed

    def act(parts: int) -> None:
        dist.barrier()
        forward_backward(layers[parts], x)
        dist.barrier()

    outputs = {parts: torch.autograd.grad(layer(x).square().mean(), x)[0] for parts, layer in layers.items()}
    first = outputs[PARTS[0]]
    medians = alternated({str(parts): partial(act, parts) for parts in PARTS}, repeats)
    return {
        "milliseconds": {parts: round(1e3 * m, 1) for parts, m in medians.items()},
        "over_one": {parts: round(m / medians["1"], 2) for parts, m in medians.items()},
        "worst_difference": max(((o - first).norm() / first.norm()).item() for o in outputs.values()),
    }


def skew_part(repeats: int) -> dict[str, Any]:
    found = {
        mode: {
            f"{skew:.0%} skewed": launched(2, "--worker", "skew", "--mode", mode, "--skew", skew, "--repeats", repeats)
            for skew in SKEWS
        }
        for mode in ("dropless", "drop", "reroute")
    }
    return {"shape": SHAPES["cpu"], "ranks": 2, "capacity_factor": 1.0, **found}


def tiny_run(seq_length: int, micro_batch: int, sources: list[str]) -> tuple[Any, Any]:
    """The tiny model's engine and the control of its routers, ready to train in this one process."""
    from recipe.engine.build import build_engine, control_routing
    from recipe.model import RecipeMoeConfig

    config = RecipeMoeConfig.from_folder(ROOT / "recipe/configs/models/tiny")
    ds_raw = ds_config_of(1, 3, micro_batch=micro_batch)
    engine = build_engine(config, ds_raw, seed=0, optimizer=Optimizer(), compute=Compute())
    for group in engine.optimizer.param_groups:
        group["lr"] = 1e-3
    control = control_routing(engine, Routing(), seq_length=seq_length, sources=sources, seed=0)
    engine.train()
    return engine, control


def metrics_part(repeats: int) -> dict[str, Any]:
    """Steps of the tiny model, observed and not in turn, and whether the losses are the same."""
    from recipe.data.batch import make_batch
    from recipe.engine.step import run_step
    from recipe.telemetry.routing_metrics import routing_metrics

    seq_length, micro_batch = 128, 8  # of the quickstart
    losses: dict[bool, list[float]] = {}
    runs = {}
    for observing in (False, True):
        runs[observing], losses[observing] = tiny_run(seq_length, micro_batch, ["en", "zh"]), []
    generator = np.random.default_rng(0)

    def step(number: int, observing: bool, batch: Any) -> None:
        engine, control = runs[observing]
        loss, sums = run_step(engine, control, Compute(), [batch], step=number, observing=observing, update_bias=True)
        losses[observing].append(loss.item())
        if sums is not None:
            routing_metrics(sums, control)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(1, repeats + 3):
        tokens = generator.integers(0, 4096, (micro_batch, seq_length + 1))
        sources = np.arange(micro_batch) % 2
        batch = make_batch(tokens, sources, eod_id=0, pad_id=None, document_attention=False)
        for observing in (True, False) if number % 2 else (False, True):
            found = timed(lambda: step(number, observing, batch))  # noqa: B023
            if number > 2:
                seconds[observing].append(found)
    plain, observed = (statistics.median(seconds[o]) for o in (False, True))
    pairs = [b - a for a, b in zip(seconds[False], seconds[True], strict=True)]
    return {
        "steps": repeats,
        "milliseconds": {"not observed": round(1e3 * plain, 2), "observed": round(1e3 * observed, 2)},
        "cost_of_observing": f"{statistics.median(pairs) / plain:.2%}",
        "losses_equal": losses[False] == losses[True],
    }


def place_of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment that the launcher would give a rank of this host."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def launched(ranks: int, *words: object) -> Any:
    """Run this script's worker as so many processes; what rank 0 prints last is the result."""
    port, processes = free_port(), []
    for rank in range(ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **place_of_rank(rank, ranks, port)}
        if ranks > 1:  # and there may be one GPU
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, *(str(w) for w in words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))  # type: ignore[call-overload]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{process.args} failed:\n{errors}")
    return json.loads(outputs[0][0].splitlines()[-1])


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/design.md from a result."""
    layer, skew, metrics, parts = result["layer"], result["skew"], result["metrics"], result.get("parts")
    shape = ", ".join(f"{value:,} {name}" for name, value in layer["shape"].items())
    modes = [name for name, found in skew.items() if isinstance(found, dict) and name != "shape"]
    lines = [f"{result['device']}, torch {result['torch']}, {result['date']}; {layer['precision']}; {shape}.", ""]
    rows = [[name, f"{ms:.1f}", f"{layer['over_ours'][name]:.2f}"] for name, ms in layer["milliseconds"].items()]
    lines += [markdown_table(["MoE layer, forward and backward", "ms", "over ours"], rows), ""]
    columns = [f"{mode} {unit}" for mode in modes for unit in ("ms", "rows", "MiB")]
    rows = [
        [state, *(f"{value:,.0f}" for mode in modes for value in skew[mode][state].values())]
        for state in skew[modes[0]]
    ]
    lines += [markdown_table([f"{skew['ranks']} ranks", *columns], rows), ""]
    if parts is not None:
        times = "; ".join(f"{number}: {ms:.0f} ms" for number, ms in parts["milliseconds"].items())
        lines += [f"The same 2 ranks by the parts in which rows are exchanged: {times}.", ""]
    lines += [f"Metrics on every step of the tiny model change its time by {metrics['cost_of_observing']}; the losses are "
              f"{'the same' if metrics['losses_equal'] else 'NOT the same'}."]  # fmt: skip
    return "\n".join(lines)


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print a result, and write it."""
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


def machine() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if CUDA else f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=positive_int, default=20, help="of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    parser.add_argument("--worker", choices=("layer", "skew", "parts", "metrics"), help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--skew", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        from recipe.engine.session import session

        with session():
            torch.set_num_threads(1)
            if args.worker == "skew":
                found = skew_worker(args.mode, args.skew, args.repeats)
            else:
                workers = {"layer": layer_part, "parts": parts_worker, "metrics": metrics_part}
                found = workers[args.worker](args.repeats)
        print(json.dumps(found), flush=True)
        # One in fifty of these workers aborted in torch's static destructors, after Python had ended. The result is out
        # and the process group is closed: nothing is left that they would do.
        os._exit(0)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    result = {
        **machine(),
        "layer": launched(1, "--worker", "layer", "--repeats", args.repeats),
        "skew": skew_part(args.repeats),
        "parts": launched(2, "--worker", "parts", "--repeats", args.repeats),
        "metrics": launched(1, "--worker", "metrics", "--repeats", 5 * args.repeats),
    }
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
