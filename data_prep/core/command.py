"""The command line that all data jobs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recipe.base.arguments import natural_int, positive_int

CONFIGS = Path(__file__).parent.parent / "configs"


def job_parser(
    description: str | None, example: str, default_config: str | None = None, reads_input: bool = True
) -> argparse.ArgumentParser:
    """Parser with --output, --workers, --max-bad and --engine, --input and --config where the job has them, and an
    example under --help."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if reads_input:
        parser.add_argument(
            "--input",
            required=True,
            type=Path,
            help="documents to read: a file, a folder of files, or the output folder of an earlier job",
        )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder for the result, new or empty; the same command run again resumes an interrupted run",
    )
    if default_config:
        parser.add_argument(
            "--config",
            type=Path,
            default=CONFIGS / default_config,
            help="settings of this job, a YAML file (default: %(default)s)",
        )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="how many tasks run at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="where tasks run: processes of this machine, a Ray cluster, or Slurm jobs (default: %(default)s)",
    )
    parser.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the engine, may be repeated: address=... for ray; for slurm any option of sbatch, such as partition=cpu or "
        "time=120, in minutes (default: the partition's own limit)",
    )
    parser.add_argument(
        "--max-bad",
        type=natural_int,
        default=100,
        help="how many records without usable text are set aside before the job stops (default: %(default)s)",
    )
    return parser
