#!/usr/bin/env python3
"""Plan a run before it is launched: memory, communication, time and money.

Of a ds_config that is given; without one, of the best with ZeRO-3 and experts inside a node; with --search, of the best of all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from recipe.base.arguments import binary_count, count, positive_int
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import ACCELERATORS, Cluster, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.planner.plan import Budget, Plan
from recipe.planner.search.ds_writer import write
from recipe.planner.search.search import (
    EP_SIZES,
    RECOMPUTES,
    STAGES,
    Candidate,
    global_batch_sequences,
    on_paper,
    search,
)
from recipe.planner.tables.report import describe_plan, describe_search
from recipe.planner.workload import RunFacts, Workload

EXAMPLE = """examples:
  python launch/plan.py --model recipe/configs/models/30b-a3b --ds-config ds_configs/a100_256.json \\
      --gpu a100-80gb --interconnect 400g
  python launch/plan.py --model recipe/configs/models/30b-a3b --gpus 256 --gpu a100-80gb --interconnect 8x200g \\
      --search --global-batch-tokens 8M --write mine.json"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder with the model's config.json")
    parser.add_argument("--gpus", type=positive_int, help="(default: what the ds_config is written for)")
    parser.add_argument(
        "--gpu", default="a100-80gb", help=f"{', '.join(a.name for a in ACCELERATORS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--interconnect",
        help="Gb/s between nodes: 400g for a whole node, 8x200g for 8 NICs (default: the vendor's node)",
    )
    parser.add_argument("--ds-config", type=Path, help="the ds_config to plan")
    parser.add_argument("--search", action="store_true", help="look for the fastest ds_config that fits")
    parser.add_argument(
        "--zero",
        type=int,
        choices=STAGES,
        action="append",
        help="only this stage; may be repeated (default: 3; with --search: all)",
    )
    parser.add_argument(
        "--ep",
        type=positive_int,
        action="append",
        help="only this expert-parallel size; may be repeated (default: the node; with --search: all)",
    )
    parser.add_argument(
        "--recompute",
        choices=("none", "reentrant", "non_reentrant"),
        help="compute.recompute of the run (default: non_reentrant; without --ds-config: the faster)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute.compile of the run (default: on, as in recipe/configs/runs/pretrain_30b.yaml)",
    )
    parser.add_argument("--seq", type=positive_int, default=4096, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument(
        "--global-batch-tokens",
        type=binary_count,
        default=8 * 2**20,
        help="of a step, without --ds-config; M is 2**20 (default: 8M)",
    )
    parser.add_argument(
        "--imbalance",
        type=count,
        help="assignments of the busiest rank over the mean, as a run has measured it (default: a range)",
    )
    parser.add_argument("--tokens", type=count, default=1e12, help="of the run (default: 1T)")
    parser.add_argument("--usd-per-gpu-hour", type=count, help="(default: a list price, see recipe/base/hardware.py)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, help="write the ds_config that was found here")
    return parser.parse_args(argv)  # fmt: skip


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    _check_arguments(args)
    shape = load_model_shape(args.model)
    budget = Budget(args.tokens, args.usd_per_gpu_hour)
    if args.ds_config is not None:
        _plan(args, shape, budget)
    else:
        _search(args, shape, budget)


def _check_arguments(args: argparse.Namespace) -> None:
    problems = []
    if args.model is None:
        problems.append("--model is missing; give a folder with config.json")
    given = args.ds_config is not None
    if given and args.search:
        problems.append("give either --ds-config or --search")
    if not given and args.gpus is None:
        problems.append("--gpus is missing; give it, or a --ds-config")
    if given and args.write is not None:
        problems.append("--write is for a ds_config that is looked for; the given one is already written")
    if args.imbalance is not None and args.imbalance < 1:
        problems.append(f"--imbalance {args.imbalance:g} is below 1; the busiest rank has at least the mean")
    if given and (args.zero or args.ep):
        problems.append("--zero and --ep narrow what is looked for; the ds_config has its own")
    if problems:
        raise UserError("; ".join(problems))


def _plan(args: argparse.Namespace, shape: ModelShape, budget: Budget) -> None:
    ds, _ = load_ds_config(args.ds_config)
    cluster = cluster_of(args.gpu, args.gpus or ds.world_size, args.interconnect)
    run = RunFacts(args.seq, args.recompute or "non_reentrant", imbalance=args.imbalance, compile=args.compile)
    plan = Plan(Workload(shape, cluster, ds, run), budget)
    if problems := plan.problems():
        raise ConfigError(f"{args.ds_config} with {args.model}", problems)
    print(json.dumps(plan.as_dict(), indent=2) if args.json else describe_plan(plan))


def _search(args: argparse.Namespace, shape: ModelShape, budget: Budget) -> None:
    cluster = cluster_of(args.gpu, args.gpus, args.interconnect)
    run = RunFacts(args.seq, imbalance=args.imbalance, compile=args.compile)
    if args.seq > shape.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's max_position_embeddings {shape.max_position_embeddings}")
    sequences = global_batch_sequences(args.global_batch_tokens, args.seq, args.gpus)
    inside_node = max(e for e in EP_SIZES if cluster.gpus_per_node % e == 0 and shape.n_routed_experts % e == 0)
    stages, ep_sizes = (STAGES, EP_SIZES) if args.search else ((3,), (inside_node,))
    ranked = search(
        shape, cluster, run, budget, sequences, stages=tuple(args.zero or stages), ep_sizes=tuple(args.ep or ep_sizes),
        recomputes=(args.recompute,) if args.recompute else RECOMPUTES,
    )  # fmt: skip
    winner = ranked[0]
    if not winner.fits:
        raise UserError(f"none of {len(ranked)} choices fits; the smallest {winner.plan.problems()[0]}")
    _print_search(args, ranked, shape, cluster, run, sequences)
    if args.write is not None:
        write(winner.config, args.write)
        print(f"wrote {args.write}; set compute.recompute: {winner.plan.work.run.recompute} and compute.compile: {str(args.compile).lower()} in the run config", file=sys.stderr)  # fmt: skip


def _print_search(
    args: argparse.Namespace, ranked: list[Candidate], shape: ModelShape, cluster: Cluster, run: RunFacts, sequences: int
) -> None:  # fmt: skip
    if not args.search:
        plan = ranked[0].plan
        print(json.dumps(plan.as_dict(), indent=2) if args.json else describe_plan(plan))
        return
    paper = on_paper(shape, cluster, run, sequences)
    if args.json:
        choices = [
            {"name": c.name, "fits": c.fits, "step_s": c.step_s, "peak_gib": c.plan.memory.peak_gib} for c in ranked
        ]
        on_paper_too = [{"name": p.name, "step_s": p.estimate.step_s} for p in paper]
        report = {
            "plan": ranked[0].plan.as_dict(),
            "ds_config": ranked[0].config,
            "choices": choices,
            "on_paper": on_paper_too,
        }
        print(json.dumps(report, indent=2))
        return
    print(describe_search(ranked, paper), describe_plan(ranked[0].plan), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
