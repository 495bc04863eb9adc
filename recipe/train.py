#!/usr/bin/env python3
"""Train a model: this script runs on each rank, which the deepspeed launcher starts."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from recipe.base.arguments import positive_seconds
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.ranks import is_first_rank, launched_world_size, leave, required_world_size
from recipe.base.tables import StageLines
from recipe.run.checkpoint_files import checkpoint_name
from recipe.run.describe import describe
from recipe.run.early_stop import answer_early_stops
from recipe.run.folder import check_resume, check_run_folder
from recipe.run.job import Job, ProfiledSteps, check_job
from recipe.run.kept_budget import KeptBudget, next_budgets, records_of, tell_of_lowered, with_budgets
from recipe.run.phases.ds_configs import write_ds_configs
from recipe.run.reports import say
from recipe.training.next_steps import after_dry_run

EXAMPLE = """examples:
  python recipe/train.py --config recipe/configs/runs/quickstart.yaml --deepspeed_config ds_configs/cpu_2.json --dry-run
  deepspeed --num_gpus 2 recipe/train.py --config recipe/configs/runs/quickstart.yaml \\
      --deepspeed_config ds_configs/cpu_2.json --set schedule.peak_lr=1e-3

exit code: 0 finished, or stopped when asked; 2 something that you must change; 75 start again with --resume auto,
as launch/train.sh does by itself."""


def resume_from(text: str) -> str:
    """One of the words, or a checkpoint's name, for which its step is enough: step_6 is step_00000006."""
    if step := re.fullmatch(r"step_(\d{1,18})", text):
        return checkpoint_name(int(step[1]))
    if text not in ("never", "auto", "latest"):
        raise argparse.ArgumentTypeError(f"'{text}' is none of never, auto, latest, step_N")
    return text


def profiled_steps(text: str) -> ProfiledSteps:
    steps = re.fullmatch(r"steps=(\d+)\.\.(\d+)", text)
    if steps is None or not 1 <= int(steps[1]) <= int(steps[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form steps=10..12")
    return ProfiledSteps(int(steps[1]), int(steps[2]))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, help="run config, YAML")
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="ds_config, JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the run config; may be repeated",
    )
    parser.add_argument(
        "--resume",
        type=resume_from,
        default="never",
        metavar="never|auto|latest|step_N",
        help="auto: from the newest intact checkpoint, or the beginning if the run has saved none; latest or a name: from that "
        "one, or stop (default: never)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="SECONDS",
        help="save and stop before it (default: the end of the Slurm job)",
    )
    parser.add_argument(
        "--profile",
        type=profiled_steps,
        metavar="steps=A..B",
        help="write a trace of these steps of rank 0 to run_dir/profiles, and print where their time goes; they take longer",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all inputs, print what would run and how to start it, start nothing",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    return parser.parse_args(argv)


def changes_since_last_start(changes: list[str]) -> list[str]:
    return [f"changed since the last start: {change}" for change in changes]


def described(job: Job, budgets: list[KeptBudget]) -> str:
    """What a start with these budgets for kept results would do."""
    sentences = [sentence for budget in budgets for sentence in budget.sentences]
    return "\n".join([describe(with_budgets(job, [budget.gib for budget in budgets])), *sentences])


def _data_of(job: Job) -> str:
    sources, tokens = len(job.data.names), job.run.schedule.total_tokens
    return f"{sources} source{'s' * (sources > 1)}, {tokens:,} tokens to train on"


def _downstream(job: Job) -> list[str]:
    """What the downstream tasks of a run cost; they are loaded and checked here."""
    settings = job.run.evaluation.downstream
    if settings is None:
        return []
    from recipe.evaluation.downstream.in_training import tasks_in_training  # late: it brings the harness, and torch

    lines = []
    for phase in map(job.at, range(len(job.phases))):
        cost = tasks_in_training(settings, job.run.tokenizer, phase.run.data.seq_length).cost
        lines.append(f"downstream  {cost.describe(settings.every_steps, phase.tokens_per_step)}")
    return list(dict.fromkeys(lines))


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    stages = StageLines(say if is_first_rank() and not args.dry_run else lambda line: None)
    early_stop = None if args.dry_run else answer_early_stops()
    world_size = launched_world_size() if args.dry_run else required_world_size()
    job = check_job(args.config, args.set, args.deepspeed_config, world_size)
    profiled: ProfiledSteps | None = args.profile
    if profiled is not None and args.resume == "never" and (message := profiled.problem(job.total_steps)):
        raise UserError(message)
    changes = check_run_folder(job, resumes=args.resume != "never")
    checkpoint = check_resume(job, args.resume) if args.resume != "never" else None
    downstream = _downstream(job)
    if args.dry_run:
        if is_first_rank():
            told = after_dry_run(job.ds.world_size, [sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
            resumes = [f"resume      from {checkpoint}"] if checkpoint is not None else []
            budgets = next_budgets(job.run.run_dir, job)
            lines = [described(job, budgets), *downstream, *changes_since_last_start(changes)]
            print("\n".join([*lines, *resumes, told]))
        return 0

    stages.done(f"configuration and data checked: {_data_of(job)}", "import torch and DeepSpeed")

    # Imported late: refusing a configuration or a dry run needs neither torch nor DeepSpeed.
    import torch

    from recipe.engine.build import check_compute
    from recipe.engine.collectives import from_first_rank
    from recipe.engine.session import session
    from recipe.run.folder import RunFolder, lock_run_folder, record_start
    from recipe.safety.failures import recorded_failures
    from recipe.safety.watchdog import Progress, Watchdog
    from recipe.training.start import train_on

    run = job.run
    for phase in job.phases:
        check_compute(phase.run.compute)
    ranks = f"{job.ds.world_size} rank{'s' * (job.ds.world_size > 1)}"
    stages.done("torch and DeepSpeed imported", f"process group of {ranks}")

    def begin() -> tuple[int, list[float]]:
        lock_run_folder(run.run_dir)
        budgets = next_budgets(run.run_dir, job)
        gibs = [budget.gib for budget in budgets]
        print("\n".join([described(job, budgets), *downstream, *changes_since_last_start(changes)]), flush=True)
        attempt = record_start(job, **records_of(with_budgets(job, gibs)))
        write_ds_configs(job)
        tell_of_lowered(RunFolder(run.run_dir, attempt), budgets)
        return attempt, gibs

    with session(run.watch):
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, torch sees no GPU"
        stages.done(f"process group of {ranks} ({device})", "run folder and newest checkpoint")
        attempt, kept_gibs = from_first_rank(begin)
        job, folder = with_budgets(job, kept_gibs), RunFolder(run.run_dir, attempt)
        assert early_stop is not None  # no dry run comes here
        early_stop.watch(run.run_dir)  # from now on the folder is ours, and what asks it to stop
        progress = Progress()
        with recorded_failures(folder, job, progress), Watchdog(folder, run.watch, progress) as watchdog:
            return train_on(
                job,
                folder,
                watchdog,
                resume=args.resume,
                time_limit_s=args.time_limit,
                profiled=profiled,
                stages=stages,
            )


if __name__ == "__main__":
    leave(main())
