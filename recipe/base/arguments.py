"""Types for argparse: numbers that a command line must keep within bounds."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.output_paths import check_output_file, check_output_folder, file_problem


def add_subject(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """--run or --model: what is evaluated, and of a run which checkpoint on how many ranks. More choices may be added."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--run",
        type=Path,
        help="the run folder: run_dir of its run config; start with the deepspeed launcher, on as many ranks as the run",
    )
    what.add_argument("--model", type=Path, help="exported folder; one process, without the launcher")
    parser.add_argument("--checkpoint", help="with --run: the checkpoint, such as step_1000 (default: the newest)")
    parser.add_argument(
        "--deepspeed_config",
        type=Path,
        help="with --run, only where the ranks are not as many as the run's: the ds_config for them; reshard the checkpoint before, "
        "with launch/reshard.py",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return what


def check_exported(folder: Path) -> None:
    """Raises UserError if --model is no exported folder."""
    if not (folder / "config.json").exists():
        raise UserError(f"--model {folder} holds no config.json; give a folder written by export.py")


def check_results(args: argparse.Namespace, default: str) -> None:
    """Raises UserError if the results cannot be written: --output, or with --run the file `default` in it; and its TensorBoard."""
    if args.run is not None:
        check_output_folder("--run", args.run / "tensorboard")
    output = args.output or (args.run and args.run / default)
    if output is not None:
        check_output_file("--output", output)


def output_file(text: str) -> Path:
    """A file to be written at the end, whose folder is looked for at the beginning."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: there is no folder {path.parent}")
    if (problem := file_problem(path)) is not None:
        raise argparse.ArgumentTypeError(problem)
    return path


def positive_int(text: str) -> int:
    return _at_least(1, text)


def natural_int(text: str) -> int:
    return _at_least(0, text)


def _at_least(smallest: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < smallest:
        raise argparse.ArgumentTypeError(f"must be at least {smallest}, not {value}")
    return value


def positive_seconds(text: str) -> float:
    value = natural_seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be above 0 s, not {text}")
    return value


def natural_seconds(text: str) -> float:
    """Zero or more, and as many as a thread can wait."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds") from None
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"must be from 0 to {threading.TIMEOUT_MAX:.0f} s, not {text}")
    return value


def count(text: str) -> float:
    """A number with a decimal suffix: 1T is 1e12, 500B, 30M, 4K."""
    return _with_suffix(text, 1000)


def binary_count(text: str) -> float:
    """A number with a binary suffix, as batches have: 8M is 8 * 2**20."""
    return _with_suffix(text, 1024)


def _with_suffix(text: str, base: int) -> float:
    powers = {"K": 1, "M": 2, "B": 3, "G": 3, "T": 4}
    number, suffix = (text[:-1], text[-1].upper()) if text[-1:].upper() in powers else (text, "")
    try:
        value = float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number such as 8M or 1T") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return value * base ** powers.get(suffix, 0)
