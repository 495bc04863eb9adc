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
            "--input", required=True, type=Path, help="documents: a file, a folder, or an earlier job's output"
        )
    parser.add_argument("--output", required=True, type=Path, help="folder for the result; run again to resume")
    if default_config:
        parser.add_argument("--config", type=Path, default=CONFIGS / default_config, help="YAML (default: %(default)s)")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="tasks at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray", "slurm"), default="local", help="where they run (default: %(default)s)"
    )
    parser.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="address=... for ray; for slurm any option of sbatch, such as partition=cpu or time=120 (without time the "
        "partition's own limit holds)",
    )
    parser.add_argument(
        "--max-bad", type=natural_int, default=100, help="records that may be no documents (default: %(default)s)"
    )
    return parser
