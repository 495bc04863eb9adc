"""What to do after a dry run, with a run that has begun from a model, and with one that has ended: its folder and the commands to try, with its real path."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from recipe.base.ranks import launcher_for, ranks_of_this_host

RECIPE = Path(__file__).resolve().parent.parent
GPUS_OF_A_HOST = 8  # at most, in what is proposed for so many ranks


def after_dry_run(ranks: int, words: Sequence[str]) -> str:
    """The last line of a dry run.

    Args:
        ranks: that the ds_config is for.
        words: the script and its arguments.
    """
    started = shlex.join(word for word in words if word != "--dry-run" and not word.startswith("--local_rank="))
    launcher = launcher_for(ranks, min(ranks, GPUS_OF_A_HOST))
    return f"dry run     the inputs fit and nothing was started; start it with: {launcher} {started}"


def after_training(run_dir: Path, ranks: int, ranks_here: int) -> str:
    """The lines that follow the end of a schedule.

    Args:
        run_dir: the run's folder.
        ranks, ranks_here: of the run, and those of them on this host.
    """
    launcher = launcher_for(ranks, ranks_here)
    run, export = (shlex.quote(str(path)) for path in (run_dir, run_dir / "export"))
    commands = [
        ("a page of the run", f"moe-report {run}"),
        ("curves", f"tensorboard --logdir {shlex.quote(str(run_dir / 'tensorboard'))}"),
        ("held-out loss", f"{launcher} {_script('evaluate_model.py')} held-out --run {run}"),
        ("HuggingFace folder", f"{launcher} {_script('export.py')} --run {run} --output {export}"),
    ]
    return "\n".join([f"run folder  {run_dir}", "next", *(f"  {name:<20}{text}" for name, text in commands)])


def after_stop(run_dir: Path) -> str:
    """The line that follows a stop before the end of the schedule."""
    return f"run folder  {run_dir}; run the same command again to continue (recipe/train.py with --resume auto)"


def train_command(args: argparse.Namespace, ranks: int) -> str:
    """The command that trains the run of `--config`, `--set` and `--deepspeed_config` from its first checkpoint on.

    Args:
        ranks: of the run.
    """
    words = ["--config", str(args.config), *(word for override in args.set for word in ("--set", override))]
    words += ["--deepspeed_config", str(args.deepspeed_config), "--resume", "auto"]
    return f"{launcher_for(ranks, ranks_of_this_host(ranks))} {_script('train.py')} {shlex.join(words)}"


def _script(name: str) -> str:
    """A script that the launcher starts, as short as it can be typed in this folder."""
    path = RECIPE / name
    return shlex.quote(os.path.relpath(path) if Path.cwd() == RECIPE.parent else str(path))
