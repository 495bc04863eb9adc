#!/usr/bin/env python3
"""Plan a run before it is launched: memory, communication, time and money of a ds_config, or a search for one."""

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
from recipe.planner import shipped
from recipe.planner.design_tables import TABLES
from recipe.planner.ds_writer import write
from recipe.planner.plan import Budget, Plan
from recipe.planner.report import clusters_table, describe_plan, describe_search
from recipe.planner.search import EP_SIZES, RECOMPUTES, STAGES, Candidate, global_batch_sequences, on_paper, search
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
        "--zero", type=int, choices=STAGES, action="append", help="with --search: only this stage; may be repeated"
    )
    parser.add_argument(
        "--ep",
        type=positive_int,
        action="append",
        help="with --search: only this expert-parallel size; may be repeated",
    )
    parser.add_argument(
        "--recompute",
        choices=("none", "reentrant", "non_reentrant"),
        help="compute.recompute of the run (default: non_reentrant; with --search: the faster)",
    )
    parser.add_argument("--seq", type=positive_int, default=4096, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument(
        "--global-batch-tokens",
        type=binary_count,
        default=8 * 2**20,
        help="with --search: tokens of a step, M is 2**20 (default: 8M)",
    )
    parser.add_argument(
        "--imbalance",
        type=count,
        help="assignments of the busiest rank over the mean, as a run has measured it (default: a range)",
    )
    parser.add_argument("--tokens", type=count, default=1e12, help="of the run (default: 1T)")
    parser.add_argument("--usd-per-gpu-hour", type=count, help="(default: a list price, see recipe/base/hardware.py)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, help="with --search: write the winner's ds_config here")
    parser.add_argument("--write-shipped", action="store_true", help="write every file of ds_configs/ anew")
    parser.add_argument("--table", choices=TABLES, help="print a table of docs/design.md")
    parser.add_argument("--shipped", action="store_true", help="print the table of ds_configs/")
    return parser.parse_args(argv)  # fmt: skip


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.write_shipped:
        for path, config in shipped.files().items():
            write(config, path)
            print(f"wrote {path}")
        return
    if args.shipped:
        print(clusters_table(shipped.plans()), shipped_reasons(), sep="\n\n")
        return
    if args.table:
        print(TABLES[args.table]())
        return
    _check_arguments(args)
    shape = load_model_shape(args.model)
    budget = Budget(args.tokens, args.usd_per_gpu_hour)
    if args.search:
        _search(args, shape, budget)
    else:
        _plan(args, shape, budget)


def shipped_reasons() -> str:
    """A line of Markdown on each shipped file."""
    return "\n".join(f"- `{s.name}.json`: {s.why}." for s in shipped.SHIPPED)


def _check_arguments(args: argparse.Namespace) -> None:
    found = []
    if args.model is None:
        found.append("--model is missing; give a folder with config.json")
    if args.search == (args.ds_config is not None):
        found.append("give either --ds-config or --search")
    if args.search and args.gpus is None:
        found.append("--search needs --gpus")
    if args.write is not None and not args.search:
        found.append("--write needs --search; a given ds_config is already written")
    if args.imbalance is not None and args.imbalance < 1:
        found.append(f"--imbalance {args.imbalance:g} is below 1; the busiest rank has at least the mean")
    if not args.search and (args.zero or args.ep):
        found.append("--zero and --ep narrow a --search; the ds_config has its own")
    if found:
        raise UserError("; ".join(found))


def _plan(args: argparse.Namespace, shape: ModelShape, budget: Budget) -> None:
    ds, _ = load_ds_config(args.ds_config)
    cluster = cluster_of(args.gpu, args.gpus or ds.world_size, args.interconnect)
    plan = Plan(
        Workload(shape, cluster, ds, RunFacts(args.seq, args.recompute or "non_reentrant", imbalance=args.imbalance)),
        budget,
    )
    if found := plan.problems():
        raise ConfigError(f"{args.ds_config} with {args.model}", found)
    print(json.dumps(plan.as_dict(), indent=2) if args.json else describe_plan(plan))


def _search(args: argparse.Namespace, shape: ModelShape, budget: Budget) -> None:
    cluster = cluster_of(args.gpu, args.gpus, args.interconnect)
    run = RunFacts(args.seq, imbalance=args.imbalance)
    if args.seq > shape.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's max_position_embeddings {shape.max_position_embeddings}")
    sequences = global_batch_sequences(args.global_batch_tokens, args.seq, args.gpus)
    ranked = search(
        shape, cluster, run, budget, sequences, stages=tuple(args.zero or STAGES), ep_sizes=tuple(args.ep or EP_SIZES),
        recomputes=(args.recompute,) if args.recompute else RECOMPUTES,
    )  # fmt: skip
    winner = ranked[0]
    if not winner.fits:
        raise UserError(f"none of {len(ranked)} choices fits; the smallest {winner.plan.problems()[0]}")
    _print_search(args, ranked, shape, cluster, run, sequences)
    if args.write is not None:
        write(winner.config, args.write)
        print(f"wrote {args.write}; set compute.recompute: {winner.plan.work.run.recompute} in the run config", file=sys.stderr)  # fmt: skip


def _print_search(
    args: argparse.Namespace, ranked: list[Candidate], shape: ModelShape, cluster: Cluster, run: RunFacts, sequences: int
) -> None:  # fmt: skip
    paper = on_paper(shape, cluster, run, sequences)
    if args.json:
        choices = [
            {"name": c.name, "fits": c.fits, "step_s": c.step_s, "peak_gib": c.plan.memory.peak_gib} for c in ranked
        ]
        on_paper_too = [{"name": p.name, "step_s": p.estimate.step_s} for p in paper]
        found = {
            "plan": ranked[0].plan.as_dict(),
            "ds_config": ranked[0].config,
            "choices": choices,
            "on_paper": on_paper_too,
        }
        print(json.dumps(found, indent=2))
        return
    print(describe_search(ranked, paper), describe_plan(ranked[0].plan), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
