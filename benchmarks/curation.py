#!/usr/bin/env python3
"""How good curation is: what it drops, masks and finds, on documents that people have read and judged.

Every section measures this recipe beside the tools that a user would pick instead, on the same documents. Peers live in
an environment of their own (make benchmark-peers).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from benchmarks.curation_run import bilingual, classifier, masks, quality, substrings  # noqa: E402
from benchmarks.data_prep import machine  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402


class Section(NamedTuple):
    measure: Callable[[Path], dict[str, Any]]  # of the peers' interpreter
    table: Callable[[dict[str, Any]], str]  # Markdown of what `measure` returned


SECTIONS = {
    "quality": Section(quality.measure, quality.table),
    "masks": Section(masks.measure, masks.table),
    "bilingual": Section(bilingual.measure, bilingual.table),
    "classifier": Section(classifier.measure, classifier.table),
    "substrings": Section(substrings.measure, substrings.table),
}


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown, section by section."""
    tables = [section.table(result[name]) for name, section in SECTIONS.items() if name in result]
    return "\n\n".join([*tables, f"Measured on {result['machine']['date']}."])


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  make benchmark-peers\n  python benchmarks/curation.py --output benchmarks/results/curation.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print an earlier result as Markdown, and nothing else"
    )
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python", help="their interpreter")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="repeatable (default: every section)")
    parser.add_argument("--output", type=Path, help="write the JSON there; sections that are not measured stay")
    args = parser.parse_args(argv)
    if args.table:
        print(table_of(load_json(args.table)))
        return
    if not args.peers.exists():
        raise UserError(f"--peers {args.peers} does not exist; make benchmark-peers installs it")
    result = load_json(args.output) if args.output and args.output.exists() else {}
    result["machine"] = machine()
    for name in args.only or SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        result[name] = SECTIONS[name].measure(args.peers)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table_of(result))


if __name__ == "__main__":
    raise SystemExit(main())
