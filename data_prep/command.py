"""The command line that all data jobs share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recipe.base.arguments import natural_int, positive_int

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
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument(
        "--max-bad", type=natural_int, default=100, help="records that may be no documents (default: %(default)s)"
    )
    return parser
