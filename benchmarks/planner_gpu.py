#!/usr/bin/env python3
"""Peak memory and step time of real GPUs beside the plan, for the GPUs that are there.

    deepspeed --num_gpus 1 benchmarks/planner_gpu.py --ds-config ds_configs/h200_1.json --model recipe/configs/models/1b-a0.3b

Trains on random tokens, whose routing is nearly balanced. Memory is what the device reports as used at the most: the
caching allocator's reserve and all that lies outside it. Prints one JSON object; ratios are measured over planned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from recipe.base.arguments import positive_int
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import GIB, accelerator_of, cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.base.ranks import is_first_rank, required_world_size
from recipe.base.run_config.routing import Routing
from recipe.base.settings import RECOMPUTES, Compute, Optimizer
from recipe.planner.plan import Plan
from recipe.planner.timing.timeline import EXPECTED
from recipe.planner.workload import RunFacts, Workload


def measure(work: Workload, ds_raw: dict, steps: int) -> dict[str, float]:
    """Median seconds of a step and the largest GiB in use, after warm-up."""
    from recipe.engine.build import build_engine, control_routing
    from recipe.engine.rehearsal import random_batch
    from recipe.engine.session import session
    from recipe.engine.step import run_step
    from recipe.model import RecipeMoeConfig

    compute = Compute(recompute=work.run.recompute, compile=work.run.compile)
    with session():
        config = RecipeMoeConfig.from_shape(work.shape)
        engine = build_engine(
            config, ds_raw, seed=0, optimizer=Optimizer(), compute=compute, seq_length=work.run.seq_length
        )
        sources = [str(number) for number in range(work.run.sources)]
        control = control_routing(engine, Routing(), seq_length=work.run.seq_length, sources=sources, seed=0)
        random, seconds = np.random.default_rng(0), []
        for step in range(1, steps + 4):
            batches = [
                random_batch(random, work.ds.train_micro_batch_size_per_gpu, work.run.seq_length, work.shape.vocab_size)
                for _ in range(work.accumulation)
            ]
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run_step(engine, control, compute, batches, step=step, observing=True, update_bias=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        free, total = torch.cuda.mem_get_info()
        outside = total - free - torch.cuda.memory_reserved()
        return {
            "step_s": statistics.median(seconds[3:]),
            "peak_gib": (torch.cuda.max_memory_reserved() + outside) / GIB,
        }


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ds-config", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path, help="folder with config.json")
    parser.add_argument("--seq", type=positive_int, default=4096, help="(default: %(default)s)")
    parser.add_argument("--recompute", choices=RECOMPUTES, default="none",
                        help="selective keeps what fits the ds_config's recipe.kept_gib (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="compute.compile (default: on)"
    )
    parser.add_argument("--steps", type=positive_int, default=5, help="measured after three (default: %(default)s)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("this measures a GPU and there is none; benchmarks/planner_accuracy.py needs none")
    name = torch.cuda.get_device_name()
    known = accelerator_of(name)
    if known is None:
        raise UserError(f"{name} is not in recipe/base/hardware.py; add it with its sources")
    ds, ds_raw = load_ds_config(args.ds_config)
    cluster = cluster_of(known.name, required_world_size(), None)
    run = RunFacts(args.seq, args.recompute, compile=args.compile)
    work = Workload(load_model_shape(args.model), cluster, ds, run)
    plan = Plan(work)
    if found := plan.problems():
        raise ConfigError(f"{args.ds_config} with {args.model}", found)
    measured = measure(work, ds_raw, args.steps)
    planned = {"step_s": plan.expected.step_s, "peak_gib": plan.memory.peak_gib}
    if is_first_rank():
        ratios = {key: measured[key] / planned[key] for key in planned}
        facts = {"device": name, "torch": torch.__version__, "assumptions": EXPECTED.name}
        print(json.dumps({**facts, "measured": measured, "planned": planned, "measured_over_planned": ratios}))


if __name__ == "__main__":
    sys.exit(main())
