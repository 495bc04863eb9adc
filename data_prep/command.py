"""The command line that all data jobs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


def job_parser(description: str, example: str, default_config: str) -> argparse.ArgumentParser:
    """Parser with --input, --output, --config, --workers and --max-bad, and an example under --help."""
    parser = argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", required=True, type=Path, help="documents: a file, a folder, or an earlier job's output"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the result; run again to resume")
    parser.add_argument("--config", type=Path, default=CONFIGS / default_config, help="YAML (default: %(default)s)")
    parser.add_argument("--workers", type=_positive, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument(
        "--max-bad", type=_natural, default=100, help="records that may be no documents (default: %(default)s)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value
