#!/usr/bin/env python3
"""Plan a run before it is launched: memory, communication, time and money.

Of a run config and a ds_config: each of its phases. Of a model: one batch and length, with a ds_config that is given; without
one, with the best of ZeRO-3 and experts inside a node; with --search, with the best of all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.base.arguments import binary_count, count, positive_int
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import ACCELERATORS, Cluster, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_file
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import RECOMPUTES, load_run_config
from recipe.planner.calibration import Calibration, calibrated_gpu, load_calibration
from recipe.planner.phases import PhasePlan, as_dict, phase_named, plan_phases, problems_of
from recipe.planner.plan import Budget, Plan
from recipe.planner.search.ds_writer import write
from recipe.planner.search.search import (
    EP_SIZES,
    SEARCHED_RECOMPUTES,
    STAGES,
    Candidate,
    OnPaper,
    global_batch_sequences,
    on_paper,
    search,
)
from recipe.planner.search.shipped import cpu_config
from recipe.planner.tables.phase_tables import describe_phases
from recipe.planner.tables.report import describe_plan, describe_search
from recipe.planner.workload import RunFacts, Workload

DEFAULT_GPU = "a100-80gb"
SEQ_LENGTH, TOKENS, GLOBAL_BATCH_TOKENS = 4096, 1e12, 8 * 2**20  # where no flag says others
EXAMPLE = """examples:
  python launch/plan.py --config recipe/configs/runs/pretrain_30b.yaml --ds-config ds_configs/a100_256.json \\
      --interconnect 400g
  python launch/plan.py --model recipe/configs/models/30b-a3b --ds-config ds_configs/a100_256.json \\
      --gpu a100-80gb --interconnect 400g
  python launch/plan.py --model recipe/configs/models/30b-a3b --gpus 256 --gpu a100-80gb --interconnect 8x200g \\
      --search --global-batch-tokens 8M --write mine.json
  python launch/plan.py --model recipe/configs/models/1b-a0.3b --ds-config ds_configs/h200_1.json \\
      --calibration h200_calibration.json
  python launch/plan.py --model recipe/configs/models/tiny --cpu-ranks 4 --write work/cpu_4.json"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="folder with the model's config.json, such as recipe/configs/models/30b-a3b; required, but with --config",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="run config: plans its phases with --ds-config, or the run as its one phase",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --config: override a key of it; may be repeated",
    )
    parser.add_argument(
        "--phase",
        metavar="NAME",
        help="with --config: everything of this phase, with each term of its memory (default: a table of all)",
    )
    parser.add_argument(
        "--document-tokens",
        type=positive_int,
        metavar="N",
        help="with --config: length of the document that a token is in on the average, where data.document_attention keeps attention "
        "inside (default: of the sequence, the most time)",
    )
    parser.add_argument(
        "--gpus", type=positive_int, help="GPUs of the cluster (default: what the ds_config is written for)"
    )
    parser.add_argument(
        "--gpu",
        help=f"of the cluster: {', '.join(a.name for a in ACCELERATORS)} (default: the calibration's, or {DEFAULT_GPU})",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="constants of this kind of GPU as benchmarks/calibration.py wrote them from a measurement; "
        "those that it lacks stay the planner's (default: all are the planner's)",
    )
    parser.add_argument(
        "--interconnect",
        help="Gb/s between nodes: 400g for a whole node, 8x200g for 8 NICs (default: the vendor's node)",
    )
    parser.add_argument("--ds-config", type=Path, help="the ds_config to plan")
    parser.add_argument(
        "--search",
        action="store_true",
        default=None,
        help="look for the fastest ds_config that fits, of all choices (seconds)",
    )
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
        choices=RECOMPUTES,
        help="compute.recompute of the run (default: selective, with the ds_config's recipe.kept_gib; without --ds-config: the faster)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute.compile of the run (default: on, as in recipe/configs/runs/pretrain_30b.yaml)",
    )
    parser.add_argument("--seq", type=positive_int, help=f"tokens of a sequence (default: {SEQ_LENGTH})")
    parser.add_argument(
        "--global-batch-tokens",
        type=binary_count,
        help="tokens of a step, without --ds-config; M is 2**20 (default: 8M)",
    )
    parser.add_argument(
        "--imbalance",
        type=count,
        help="assignments of the busiest rank over the mean, as a run has measured it (default: a range of values)",
    )
    parser.add_argument("--tokens", type=count, help="tokens of the run (default: 1T)")
    parser.add_argument(
        "--usd-per-gpu-hour",
        type=count,
        help="price of a GPU-hour in USD (default: a list price, see recipe/base/hardware.py)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, help="file to write the chosen ds_config to; without --ds-config")
    parser.add_argument(
        "--cpu-ranks",
        type=positive_int,
        metavar="N",
        help="write a ds_config for trying a small model on N CPU processes, as ds_configs/cpu_2.json is for 2; plans nothing",
    )
    return parser.parse_args(argv)  # fmt: skip


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.write is not None:
        check_output_file("--write", args.write)
    if args.cpu_ranks is not None:
        return _write_for_cpus(args)
    _check_arguments(args)
    calibration = None if args.calibration is None else load_calibration(args.calibration)
    args.gpu = calibrated_gpu(calibration, args.calibration, args.gpu, DEFAULT_GPU)
    if args.config is not None:
        return _plan_phases(args, calibration)
    _set_defaults(args)
    shape = load_model_shape(args.model)
    budget = Budget(args.tokens, args.usd_per_gpu_hour)
    if args.ds_config is not None:
        _plan(args, shape, budget, calibration)
    else:
        _search(args, shape, budget, calibration)


def _cluster(args: argparse.Namespace, gpus: int, calibration: Calibration | None) -> Cluster:
    cluster = cluster_of(args.gpu, gpus, args.interconnect)
    return cluster if calibration is None else calibration.applied_to(cluster)


def _as_dict(plan: Plan, calibration: Calibration | None) -> dict[str, Any]:
    measured = {} if calibration is None else {"calibration": calibration.as_dict()}
    return plan.as_dict() | measured


def _write_for_cpus(args: argparse.Namespace) -> None:
    """Write the ds_config of CPU ranks, which have no plan: the planner knows GPUs alone."""
    problems = [f"{name} is missing; give it" for name in ("--model", "--write") if vars(args)[name[2:]] is None]
    others = {"--ds-config": args.ds_config, "--gpus": args.gpus, "--search": args.search, "--json": args.json,
              "--zero": args.zero, "--ep": args.ep, "--calibration": args.calibration}  # fmt: skip
    problems += [f"{name} does not go with --cpu-ranks; remove one of them" for name, value in others.items() if value]
    if problems:
        raise UserError("; ".join(problems))
    config = cpu_config(load_model_shape(args.model), args.cpu_ranks)
    write(config, args.write)
    experts, each = config["expert_parallel"]["autoep_size"], config["train_micro_batch_size_per_gpu"]
    ranks = "1 CPU rank" if args.cpu_ranks == 1 else f"{args.cpu_ranks} CPU ranks"
    print(f"wrote {args.write} for {ranks}: a layer's experts over {experts}, {each} sequences a rank and step; start it with --num_gpus {args.cpu_ranks}, or with a hostfile whose slots add up to {args.cpu_ranks}")  # fmt: skip


def _set_defaults(args: argparse.Namespace) -> None:
    """What a run config would say, where none does."""
    defaults = {"seq": SEQ_LENGTH, "tokens": TOKENS, "compile": True, "global_batch_tokens": GLOBAL_BATCH_TOKENS}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


# What the run config says, and what looks for a ds_config.
NOT_WITH_CONFIG = (
    "model",
    "seq",
    "recompute",
    "compile",
    "tokens",
    "gpus",
    "search",
    "zero",
    "ep",
    "global_batch_tokens",
    "write",
)
WITH_CONFIG = ("set", "phase", "document_tokens")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_arguments(args: argparse.Namespace) -> None:
    if args.config is not None:
        given = [_flag(name) for name in NOT_WITH_CONFIG if getattr(args, name) is not None]
        problems = (
            [f"{', '.join(given)}: not with --config, which says this of each phase; remove it or use --set"]
            if given
            else []
        )
        if args.ds_config is None:
            problems.append("--ds-config is missing; give the one that the run config is to be launched with")
    else:
        problems = [
            f"{_flag(name)} goes with --config; give the run config" for name in WITH_CONFIG if getattr(args, name)
        ]
        problems += _problems_without_config(args)
    if args.imbalance is not None and args.imbalance < 1:
        problems.append(f"--imbalance {args.imbalance:g} is below 1; the busiest rank has at least the mean")
    if problems:
        raise UserError("; ".join(problems))


def _problems_without_config(args: argparse.Namespace) -> list[str]:
    problems = []
    if args.model is None:
        problems.append("--model is missing; give a folder with config.json, such as recipe/configs/models/30b-a3b")
    given = args.ds_config is not None
    if given and args.search:
        problems.append("give either --ds-config or --search: a search makes a ds_config")
    if not given and args.gpus is None:
        problems.append("--gpus is missing; give the number of GPUs, or a ds_config as --ds-config")
    if given and args.write is not None:
        problems.append("--write is for a ds_config that is looked for; the given one is already written")
    if given and (args.zero or args.ep):
        problems.append("--zero and --ep narrow what is looked for; the ds_config has its own")
    return problems


def _plan_phases(args: argparse.Namespace, calibration: Calibration | None) -> None:
    run = load_run_config(args.config, args.set)
    ds, ds_raw = load_ds_config(args.ds_config)
    phases = resolve_phases(run, load_model_shape(run.model), ds, ds_raw, path=args.config)
    planned = plan_phases(
        phases, _cluster(args, ds.world_size, calibration), usd_per_gpu_hour=args.usd_per_gpu_hour, imbalance=args.imbalance,
        document_tokens=args.document_tokens,
    )  # fmt: skip
    if problems := problems_of(planned):
        raise ConfigError(f"{args.config} with {args.ds_config}", problems)
    if args.phase is not None:
        _print_plan(args, _planned_phase(args.phase, planned), calibration)
    elif args.json:
        measured = {} if calibration is None else {"calibration": calibration.as_dict()}
        print(json.dumps(as_dict(planned) | measured, indent=2))
    else:
        print(describe_phases(planned, calibration))


def _planned_phase(name: str, planned: Sequence[PhasePlan]) -> Plan:
    phase = phase_named(name, [p.phase for p in planned])
    return planned[phase.number].plan


def _plan(args: argparse.Namespace, shape: ModelShape, budget: Budget, calibration: Calibration | None) -> None:
    ds, _ = load_ds_config(args.ds_config)
    cluster = _cluster(args, args.gpus or ds.world_size, calibration)
    run = RunFacts(args.seq, args.recompute or "selective", imbalance=args.imbalance, compile=args.compile)
    plan = Plan(Workload(shape, cluster, ds, run), budget)
    if problems := plan.problems():
        raise ConfigError(f"{args.ds_config} with {args.model}", problems)
    _print_plan(args, plan, calibration)


def _print_plan(args: argparse.Namespace, plan: Plan, calibration: Calibration | None) -> None:
    print(json.dumps(_as_dict(plan, calibration), indent=2) if args.json else describe_plan(plan, calibration))


def _search(args: argparse.Namespace, shape: ModelShape, budget: Budget, calibration: Calibration | None) -> None:
    cluster = _cluster(args, args.gpus, calibration)
    run = RunFacts(args.seq, imbalance=args.imbalance, compile=args.compile)
    if args.seq > shape.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's max_position_embeddings {shape.max_position_embeddings}")
    sequences = global_batch_sequences(args.global_batch_tokens, args.seq, args.gpus)
    inside_node = max(e for e in EP_SIZES if cluster.gpus_per_node % e == 0 and shape.n_routed_experts % e == 0)
    stages, ep_sizes = (STAGES, EP_SIZES) if args.search else ((3,), (inside_node,))
    ranked = search(
        shape, cluster, run, budget, sequences, stages=tuple(args.zero or stages), ep_sizes=tuple(args.ep or ep_sizes),
        recomputes=(args.recompute,) if args.recompute else SEARCHED_RECOMPUTES, shows_progress=True,
    )  # fmt: skip
    winner = ranked[0]
    if not winner.fits:
        raise UserError(
            f"none of {len(ranked)} choices fits {args.gpus} GPUs of {args.gpu}; the smallest {winner.plan.problems()[0]}"
        )
    if args.search:
        _print_search(args, ranked, on_paper(shape, cluster, run, sequences), calibration)
    else:
        _print_plan(args, winner.plan, calibration)
    if args.write is not None:
        write(winner.config, args.write)
        print(f"wrote {args.write}; set compute.recompute: {winner.plan.work.run.recompute} and compute.compile: {str(args.compile).lower()} in the run config", file=sys.stderr)  # fmt: skip


def _print_search(
    args: argparse.Namespace, ranked: list[Candidate], paper: list[OnPaper], calibration: Calibration | None
) -> None:
    if args.json:
        choices = [
            {"name": c.name, "fits": c.fits, "step_s": c.step_s, "peak_gib": c.plan.memory.peak_gib} for c in ranked
        ]
        on_paper_too = [{"name": p.name, "step_s": p.estimate.step_s} for p in paper]
        report = {
            "plan": _as_dict(ranked[0].plan, calibration),
            "ds_config": ranked[0].config,
            "choices": choices,
            "on_paper": on_paper_too,
        }
        print(json.dumps(report, indent=2))
        return
    print(describe_search(ranked, paper), describe_plan(ranked[0].plan, calibration), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
