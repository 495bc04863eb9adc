#!/usr/bin/env python3
"""Train a model, under the DeepSpeed launcher."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from recipe.base.arguments import positive_seconds
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.ranks import is_first_rank, launched_world_size, leave, required_world_size
from recipe.run.checkpoint_files import checkpoint_name
from recipe.run.early_stop import answer_early_stops
from recipe.run.folder import check_resume, check_run_folder
from recipe.run.job import ProfiledSteps, check_job, describe

EXAMPLE = """example:
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
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
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
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    return parser.parse_args(argv)


def changes_since_last_start(changes: list[str]) -> list[str]:
    return [f"changed since the last start: {change}" for change in changes]


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    early_stop = None if args.dry_run else answer_early_stops()
    world_size = launched_world_size() if args.dry_run else required_world_size()
    job = check_job(args.config, args.set, args.deepspeed_config, world_size)
    profiled: ProfiledSteps | None = args.profile
    if profiled is not None and args.resume == "never" and (message := profiled.problem(job.total_steps)):
        raise UserError(message)
    changes = check_run_folder(job, resumes=args.resume != "never")
    if args.resume != "never":
        check_resume(job, args.resume)
    if args.dry_run:
        if is_first_rank():
            print("\n".join([describe(job), *changes_since_last_start(changes)]))
        return 0

    # Imported late: refusing a configuration or a dry run needs neither torch nor DeepSpeed.
    from recipe.engine.build import check_compute
    from recipe.engine.collectives import from_first_rank
    from recipe.engine.session import session
    from recipe.run.folder import RunFolder, lock_run_folder, record_start
    from recipe.safety.failures import recorded_failures
    from recipe.safety.watchdog import Watchdog
    from recipe.training.start import train_on

    run = job.run
    check_compute(run.compute)

    def begin() -> int:
        lock_run_folder(run.run_dir)
        print("\n".join([describe(job), *changes_since_last_start(changes)]), flush=True)
        return record_start(job)

    with session(run.watch):
        folder = RunFolder(run.run_dir, from_first_rank(begin))
        assert early_stop is not None  # no dry run comes here
        early_stop.watch(run.run_dir)  # from now on the folder is ours, and what asks it to stop
        with recorded_failures(folder, job), Watchdog(folder, run.watch) as watchdog:
            return train_on(job, folder, watchdog, resume=args.resume, time_limit_s=args.time_limit, profiled=profiled)


if __name__ == "__main__":
    leave(main())
