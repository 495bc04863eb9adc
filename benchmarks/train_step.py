#!/usr/bin/env python3
"""A whole training step on one GPU: this recipe beside what a user would pick instead.

    python benchmarks/train_step.py --output benchmarks/results/train_step.json

The same shape, batch, precision and data for all (benchmarks/contenders.py), each in a process of its own: tokens/s, model
FLOPs utilisation (of the bf16 matmul that this GPU reaches here, and of its datasheet), peak memory, the time by kind of
kernel and part of the model, and for ours what the planner said. A contender that fails is reported with its reason.
Defaults: with a GPU, as many layers of 7b-a1b and sequences of 4,096 as all contenders have room for, under ten minutes in
all; without one, the tiny model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.contenders import CONTENDERS, CUDA, DEVICE, DTYPE, Case, Ours  # noqa: E402
from benchmarks.moe_layer import machine, place_of_rank  # noqa: E402
from launch.cluster.hosts import free_port  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.hardware import GIB, accelerator_of, cluster_of  # noqa: E402
from recipe.base.model_shape import load_model_shape  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.planner.plan import Plan  # noqa: E402
from recipe.planner.search.ds_writer import parsed  # noqa: E402
from recipe.planner.workload import RunFacts, Workload  # noqa: E402

MODELS = ROOT / "recipe/configs/models"
PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "transformer-engine", "triton")
WARM_UP, PROFILED = 3, 2
LIMIT_S = 240.0  # for one contender


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def matmul_ceiling() -> float:
    """FLOP/s of large square matmuls in the precision of the contenders, which no step can exceed."""
    size, times = (8192, 40) if CUDA else (1024, 20)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    for _ in range(5):
        a @ b
    synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        a @ b
    synchronize()
    return times * 2 * size**3 / (time.perf_counter() - begun)


def peak_gib() -> float:
    """The most that the device had in use: the caching allocator's reserve and what lies outside it."""
    if CUDA:
        free, total = torch.cuda.mem_get_info()
        return (torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()) / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure(name: str, case: Case, steps: int) -> dict[str, Any]:
    """Median seconds of a step, memory, and where the time goes; in this process, which must have a process group."""
    from recipe.reading.breakdown import breakdown, read_trace
    from recipe.telemetry.profiling import traced

    begun = time.perf_counter()
    contender = CONTENDERS[name](case)
    random = np.random.default_rng(0)
    shape = (case.micro_batch, case.seq_length + 1)
    batches = [random.integers(0, case.shape.vocab_size, shape) for _ in range(4)]
    losses, seconds = [], []
    for number in range(WARM_UP + steps):
        synchronize()
        started = time.perf_counter()
        loss = contender.step(batches[number % len(batches)], lambda phase: None)
        synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
        if number == 0:
            build_s = time.perf_counter() - begun
    memory = peak_gib()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with traced(contender.model, trace) as phases:
            for number in range(PROFILED):
                phases.enter("reading")
                contender.step(batches[number], phases.enter)
        found = breakdown(read_trace(trace), PROFILED)
    return {
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in contender.model.parameters()),
        "step_s": statistics.median(seconds[WARM_UP:]),
        "first_step_after_s": build_s,
        "peak_gib": memory,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "breakdown": found.as_json(),
    }


def worker(name: str, case: Case, steps: int) -> None:
    from recipe.engine.session import session

    with redirect_stdout(sys.stderr), session():
        found = measure(name, case, steps)
    print(json.dumps(found), flush=True)
    os._exit(0)  # what libraries do at the end is not measured, and some abort in it


def run_worker(name: str, words: list[str]) -> dict[str, Any]:
    """A contender's figures, or why there are none."""
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ, **place_of_rank(0, 1, free_port())}
    if not CUDA:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *words, "--worker", name]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def planned(ours: Ours, case: Case) -> dict[str, float] | None:
    """What the planner says of one of ours; None where it does not know the device."""
    known = accelerator_of(torch.cuda.get_device_name()) if CUDA else None
    if known is None:
        return None
    run = RunFacts(case.seq_length, "none", compile=ours.compile)
    plan = Plan(Workload(case.shape, cluster_of(known.name, 1, None), parsed(ours.ds_config(case)), run))
    return {"step_s": plan.expected.step_s, "peak_gib": plan.memory.peak_gib}


def with_rates(found: dict[str, Any], case: Case, ceiling: float, datasheet: float | None) -> dict[str, Any]:
    if "failed" in found:
        return found
    tokens = case.micro_batch * case.seq_length
    flops_per_s = tokens * case.shape.training_flops_per_token(case.seq_length) / found["step_s"]
    rates = {"tokens_per_s": tokens / found["step_s"], "mfu_of_matmul": flops_per_s / ceiling}
    if datasheet is not None:
        rates["mfu"] = flops_per_s / datasheet
    return {**rates, **found}


def head_share(case: Case) -> float:
    """Of the model's FLOPs: what the loss head's matmuls must take; a slice of few layers has the whole head."""
    head = 6 * case.shape.vocab_size * case.shape.hidden_size
    return head / case.shape.training_flops_per_token(case.seq_length)


def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/performance.md from a result."""
    case, first = result["case"], next(iter(result["contenders"].values()))
    packages = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    lines = [
        f"{result['device']}, {result['date']}; {packages}. {case['layers']} layers of {case['model']} "
        f"({case['parameters']:,} parameters, {case['active']:,} active, "
        f"{case['head_share_of_flops']:.1%} of the FLOPs in the head), {case['micro_batch']} sequences of "
        f"{case['seq_length']:,}, {case['precision']}; matmul ceiling {result['matmul_flops_per_s'] / 1e12:,.2f} TFLOP/s.",
        "",
    ]
    rows = []
    for name, found in result["contenders"].items():
        if "failed" in found:
            rows.append([name, found["failed"].replace("|", "/")[:80], *[""] * 6])
            continue
        rows.append([
            name, f"{found['tokens_per_s']:,.0f}", f"{found['tokens_per_s'] / first['tokens_per_s']:.2f}",
            f"{found['mfu_of_matmul']:.1%}", f"{found['mfu']:.1%}" if "mfu" in found else "", f"{found['peak_gib']:.1f}",
            f"{1e3 * found['step_s']:,.0f}", "" if found["breakdown"]["idle_share"] is None else f"{found['breakdown']['idle_share']:.1%}",
        ])  # fmt: skip
    head = [
        "training step",
        "tokens/s",
        "over the first",
        "MFU of matmul",
        "MFU of datasheet",
        "peak GiB",
        "ms",
        "idle",
    ]
    lines += [markdown_table(head, rows), ""]
    parts = list(
        dict.fromkeys(p for f in result["contenders"].values() for p in f.get("breakdown", {}).get("part_s", {}))
    )
    rows = []
    for name, found in result["contenders"].items():
        if "failed" not in found:
            spent, wall = found["breakdown"]["part_s"], found["breakdown"]["wall_s"]
            rows.append([name, *(f"{sum(spent[p].values()) / wall:.1%}" if p in spent else "" for p in parts)])
    return "\n".join([*lines, markdown_table(["share of the profiled step", *parts], rows)])


def defaults() -> tuple[int, int]:
    """Layers and sequences: transformers' loss holds whole logits in fp32 several times, 2 GiB a sequence and copy."""
    if not CUDA:
        return 4, 4
    roomy = torch.cuda.get_device_properties(0).total_memory > 120 * GIB
    return (8, 4) if roomy else (6, 2)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=MODELS / ("7b-a1b" if CUDA else "tiny"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--layers", type=positive_int, default=defaults()[0], help="that are kept (default: %(default)s)"
    )
    parser.add_argument("--seq", type=positive_int, default=4096 if CUDA else 256, help="(default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=positive_int, default=defaults()[1], help="sequences (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=8, help=f"measured after {WARM_UP} (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"some of: {'; '.join(CONTENDERS)}"
    )
    parser.add_argument("--output", type=output_file, help="write the JSON there too, after each contender")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    whole = load_model_shape(args.model)
    if not whole.first_k_dense_replace < args.layers <= whole.num_hidden_layers:
        raise UserError(
            f"--layers {args.layers} must be between {whole.first_k_dense_replace + 1} and {whole.num_hidden_layers}"
        )
    if args.seq > whole.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's {whole.max_position_embeddings}")
    case = Case(whole.model_copy(update={"num_hidden_layers": args.layers}), args.seq, args.micro_batch)
    if args.worker:
        worker(args.worker, case, args.steps)
    ceiling, known = matmul_ceiling(), accelerator_of(torch.cuda.get_device_name()) if CUDA else None
    result: dict[str, Any] = {
        **machine(),
        "packages": packages(),
        "command": " ".join(["python", "benchmarks/train_step.py", *(argv if argv is not None else sys.argv[1:])]),
        "case": {
            "model": args.model.name, "layers": args.layers, "seq_length": args.seq, "micro_batch": args.micro_batch,
            "parameters": sum(case.shape.parameters().values()), "active": sum(case.shape.active_parameters().values()),
            "head_share_of_flops": head_share(case),
            "precision": str(DTYPE).removeprefix("torch."),
        },
        "matmul_flops_per_s": ceiling,
        "contenders": {},
    }  # fmt: skip
    if CUDA:
        torch.cuda.empty_cache()
    words = ["--model", str(args.model), "--layers", str(args.layers), "--seq", str(args.seq),
             "--micro-batch", str(args.micro_batch), "--steps", str(args.steps)]  # fmt: skip
    for name in args.only or CONTENDERS:
        found = with_rates(run_worker(name, words), case, ceiling, known.bf16_flops if known else None)
        builder = CONTENDERS[name]
        if isinstance(builder, Ours) and "failed" not in found and (plan := planned(builder, case)) is not None:
            found["planned"] = {
                key: {"planned": plan[key], "measured_over_planned": found[key] / plan[key]} for key in plan
            }
        result["contenders"][name] = found
        print(f"{name}: {found.get('failed') or '{:,.0f} tokens/s'.format(found['tokens_per_s'])}", file=sys.stderr)
        if args.output is not None:
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(main())
