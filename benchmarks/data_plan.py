#!/usr/bin/env python3
"""Cores, hours and disk of the data jobs for a corpus of any size, from rates that benchmarks/data_prep.py measured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402

MEASURED = ROOT / "benchmarks" / "results" / "data_prep.json"
BYTES_PER_TOKEN = 4.6  # of a 131,072 vocabulary over both languages; evaluate_tokenizer.py prints yours
DOCUMENT_BYTES = 3_000  # of a web page's text after curation (FineWeb: 15T tokens in about 23 billion pages)
ZSTD_SHARE = 0.42  # of text, as written by the jobs: level 3
SIGNATURE_BYTES = 600  # of one document: 256 of its signature, 256 of its bands, hashes, rank, id
BAND_BYTES = 32 * 24  # of one document while candidates are looked for: band key, document, exact hash
# Pairs of an assumed 3 in 10 documents that have a near copy: met in 20 bands, 24 bytes each, then 1.5 with a signature.
PAIR_BYTES = round(0.3 * (20 * 24 + 1.5 * 280))
TIMES_WRITTEN = (
    2  # rows on their way: many producers' files are merged before they are read (data_prep/core/shuffle.py)
)


@dataclass(frozen=True)
class Step:
    """A job: which share of its input's bytes it keeps, and the benchmark's name for it."""

    name: str
    keeps: float
    measured: str


# The shares kept are assumptions: FineWeb keeps about a third of what it extracts (arXiv 2406.17557), its
# deduplication per snapshot about two thirds of that; sources that come filtered keep more.
STEPS = (
    Step("curate", 0.45, "curate"),
    Step("dedup", 0.70, "dedup"),
    Step("decontaminate", 0.995, "decontaminate"),
    Step("tokenize_corpus", 1.0, "tokenize_corpus"),
)


def plan(measured: dict, raw_bytes: float, cores: int) -> str:
    """The plan as a Markdown table."""
    lines = [
        "| job | text in, TB | MB/s a core | core-hours | hours | MiB a worker | disk written, TB | of it passing, TB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    text, total = raw_bytes, 0.0
    for step in STEPS:
        run = measured["memory"]["jobs"][step.measured]["large"]
        rate = measured["memory"]["large_text_bytes"] / run["cpu_s"]
        hours = text / rate / 3600
        documents = text / DOCUMENT_BYTES
        kept = text * step.keeps
        written, passing = kept * ZSTD_SHARE, 0.0
        if step.name == "dedup":
            written, passing = (
                written + documents * SIGNATURE_BYTES,
                documents * (BAND_BYTES + PAIR_BYTES) * TIMES_WRITTEN,
            )
        elif step.name == "tokenize_corpus":
            written = text / BYTES_PER_TOKEN * 4  # int32; shards, and as much on its way to them
            passing = written * TIMES_WRITTEN
        lines.append(
            f"| {step.name} | {text / 1e12:.1f} | {rate / 1e6:.1f} | {hours:,.0f} | {hours / cores:.1f} | {run['peak_mib']} "
            f"| {(written + passing) / 1e12:.1f} | {passing / 1e12:.1f} |"
        )
        total += hours
        text = kept
    tokens = text / BYTES_PER_TOKEN
    lines.append(
        f"| together | {raw_bytes / 1e12:.1f} | | {total:,.0f} | {total / cores:.1f} | | {tokens / 1e12:.2f}T tokens | |"
    )
    return "\n".join(lines)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example:\n  python benchmarks/data_plan.py --terabytes 15 --cores 512"
    )
    parser.add_argument(
        "--measured", type=Path, default=MEASURED, help="JSON of benchmarks/data_prep.py (default: %(default)s)"
    )
    parser.add_argument("--terabytes", type=float, default=15.0, help="raw text, 10**12 bytes (default: %(default)s)")
    parser.add_argument("--cores", type=positive_int, default=512, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    measured = load_json(args.measured)
    machine = measured["machine"]
    print(plan(measured, args.terabytes * 1e12, args.cores))
    print(f"\nRates of {json.dumps(machine['cpu'])}, {machine['date']}; {args.cores} cores of that kind.")


if __name__ == "__main__":
    raise SystemExit(main())
