#!/usr/bin/env python3
"""Plan a run before it is launched: memory, communication, time and money.

Of a run config and a ds_config: each of its phases. Of a model: one batch and length, with a ds_config that is given; without
one, with the best of ZeRO-3 and experts inside a node; with --search, with the best of all. Of several models and clusters with
--target-bits-per-byte: what a loss costs with each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from launch.plan_arguments import (
    DEFAULT_GPU,
    check_arguments,
    check_target,
    own_cluster,
    parse,
    set_defaults,
    take_one_each,
    targets_of,
)
from recipe.base.ds_config import load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import Cluster, cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_file
from recipe.base.run_config.resolved import resolve_phases
from recipe.base.settings import load_run_config
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


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv, __doc__)
    if args.target_bits_per_byte is not None:
        check_target(args)
    if args.write is not None:
        check_output_file("--write", args.write)
    if args.cpu_ranks is not None:
        take_one_each(args)
        return _write_for_cpus(args)
    check_arguments(args)
    calibration = None if args.calibration is None else load_calibration(args.calibration)
    args.gpu = calibrated_gpu(calibration, args.calibration, args.gpu, DEFAULT_GPU)
    args.planned_loss = None
    if args.config is not None:
        return _plan_phases(args, calibration)
    set_defaults(args)
    if args.target_bits_per_byte is not None:
        return _rank(args, calibration)
    take_one_each(args)
    shape = load_model_shape(args.model)
    if args.loss is not None:
        args.planned_loss = _planned_loss(args, shape)
    budget = Budget(args.tokens, args.usd_per_gpu_hour, own_cluster(args))
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
              "--zero": args.zero, "--ep": args.ep, "--calibration": args.calibration, "--loss": args.loss}  # fmt: skip
    problems += [f"{name} does not go with --cpu-ranks; remove one of them" for name, value in others.items() if value]
    if problems:
        raise UserError("; ".join(problems))
    config = cpu_config(load_model_shape(args.model), args.cpu_ranks)
    write(config, args.write)
    experts, each = config["expert_parallel"]["autoep_size"], config["train_micro_batch_size_per_gpu"]
    ranks = "1 CPU rank" if args.cpu_ranks == 1 else f"{args.cpu_ranks} CPU ranks"
    print(f"wrote {args.write} for {ranks}: a layer's experts over {experts}, {each} sequences a rank and step; start it with --num_gpus {args.cpu_ranks}, or with a hostfile whose slots add up to {args.cpu_ranks}")  # fmt: skip


def _plan_phases(args: argparse.Namespace, calibration: Calibration | None) -> None:
    run = load_run_config(args.config, args.set)
    ds, ds_raw = load_ds_config(args.ds_config)
    phases = resolve_phases(run, load_model_shape(run.model), ds, ds_raw, path=args.config)
    planned = plan_phases(
        phases, _cluster(args, ds.world_size, calibration), usd_per_gpu_hour=args.usd_per_gpu_hour, imbalance=args.imbalance,
        document_tokens=args.document_tokens, own=own_cluster(args),
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
    if args.json:
        print(json.dumps(_as_dict(plan, calibration) | _loss_as_dict(args, plan), indent=2))
    else:
        print(describe_plan(plan, calibration), *_loss_lines(args, plan), sep="\n\n")


# What needs a ladder is imported where there is one: numpy and scipy take longer than a plan.


def _planned_loss(args: argparse.Namespace, shape: ModelShape) -> dict[str, Any]:
    from recipe.scaling.ladder_file import load_ladder, planned_loss
    from recipe.scaling.law import size_of

    return planned_loss(load_ladder(args.loss), size_of(shape, args.tokens))


def _loss_as_dict(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    if args.planned_loss is None:
        return {}
    from recipe.scaling.cost.report import batch_as_dict

    return {"loss": {**args.planned_loss, "batch": batch_as_dict(plan)}}


def _loss_lines(args: argparse.Namespace, plan: Plan) -> list[str]:
    if args.planned_loss is None:
        return []
    from recipe.scaling.cost.report import describe_batch
    from recipe.scaling.ladder_file import describe_loss

    return [f"{describe_loss(args.planned_loss)}\n{describe_batch(plan)}"]


def _rank(args: argparse.Namespace, calibration: Calibration | None) -> None:
    """Every model on every number of GPUs with every batch, by what the target loss costs."""
    from recipe.scaling.cost.ranking import rank
    from recipe.scaling.cost.report import describe_ranking
    from recipe.scaling.ladder_file import load_ladder

    shapes = {path.resolve().name: load_model_shape(path) for path in args.model}
    if len(shapes) < len(args.model):
        raise UserError("two --model folders have the same name; give each model once")
    ladder = load_ladder(args.loss)
    targets = targets_of(args.target_bits_per_byte, ladder.fits)
    budget = Budget(args.tokens, args.usd_per_gpu_hour, own_cluster(args))

    def fastest(shape: ModelShape, cluster: Cluster, batch_tokens: float) -> Candidate:
        return _candidates(args, shape, cluster, batch_tokens, budget)[0]

    clusters = [_cluster(args, gpus, calibration) for gpus in args.gpus]
    ranked, refused = rank(ladder, targets, shapes, clusters, args.global_batch_tokens, fastest)
    if args.json:
        choices = [*(cost.as_dict() for cost in ranked), *(cost.as_dict() for cost in refused)]
        basis = {"runs": len(ladder.runs), "largest": ladder.largest, "exponents_fitted": ladder.exponents_fitted}
        print(json.dumps({"target_bits_per_byte": targets, "basis": basis, "choices": choices}, indent=2))
    else:
        print(describe_ranking(ladder, targets, ranked, refused))


def _search(args: argparse.Namespace, shape: ModelShape, budget: Budget, calibration: Calibration | None) -> None:
    cluster = _cluster(args, args.gpus, calibration)
    ranked = _candidates(args, shape, cluster, args.global_batch_tokens, budget)
    winner = ranked[0]
    if args.search:
        run = RunFacts(args.seq, imbalance=args.imbalance, compile=args.compile)
        _print_search(args, ranked, on_paper(shape, cluster, run, winner.plan.work.ds.train_batch_size), calibration)
    else:
        _print_plan(args, winner.plan, calibration)
    if args.write is not None:
        write(winner.config, args.write)
        print(f"wrote {args.write}; set compute.recompute: {winner.plan.work.run.recompute} and compute.compile: {str(args.compile).lower()} in the run config", file=sys.stderr)  # fmt: skip


def _candidates(
    args: argparse.Namespace, shape: ModelShape, cluster: Cluster, batch_tokens: float, budget: Budget
) -> list[Candidate]:
    """Of the choices that are searched, the best first; it fits."""
    if args.seq > shape.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's max_position_embeddings {shape.max_position_embeddings}")
    run = RunFacts(args.seq, imbalance=args.imbalance, compile=args.compile)
    sequences = global_batch_sequences(batch_tokens, args.seq, cluster.gpus)
    inside_node = max(e for e in EP_SIZES if cluster.gpus_per_node % e == 0 and shape.n_routed_experts % e == 0)
    stages, ep_sizes = (STAGES, EP_SIZES) if args.search else ((3,), (inside_node,))
    ranked = search(
        shape, cluster, run, budget, sequences, stages=tuple(args.zero or stages), ep_sizes=tuple(args.ep or ep_sizes),
        recomputes=(args.recompute,) if args.recompute else SEARCHED_RECOMPUTES, shows_progress=True,
    )  # fmt: skip
    if not ranked[0].fits:
        raise UserError(
            f"none of {len(ranked)} choices fits {cluster.gpus} GPUs of {args.gpu}; the smallest {ranked[0].plan.problems()[0]}"
        )
    return ranked


def _print_search(
    args: argparse.Namespace, ranked: list[Candidate], paper: list[OnPaper], calibration: Calibration | None
) -> None:
    if args.json:
        choices = [
            {"name": c.name, "fits": c.fits, "step_s": c.step_s, "peak_gib": c.plan.memory.peak_gib} for c in ranked
        ]
        on_paper_too = [{"name": p.name, "step_s": p.estimate.step_s} for p in paper]
        report = {
            "plan": _as_dict(ranked[0].plan, calibration) | _loss_as_dict(args, ranked[0].plan),
            "ds_config": ranked[0].config,
            "choices": choices,
            "on_paper": on_paper_too,
        }
        print(json.dumps(report, indent=2))
        return
    plan = ranked[0].plan
    print(describe_search(ranked, paper), describe_plan(plan, calibration), *_loss_lines(args, plan), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
