#!/usr/bin/env python3
"""How far the planner is from runs that others published: every row with its prediction, or why it has none.

Constants of the planner are physical and shared by all rows. `--rows` takes any CSV with the columns of
`recipe/planner/tables/published.py`; `--json` ends with one JSON object of `median_error`, `rows_predicted`, `rows_excluded`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.tables import markdown_table
from recipe.planner.tables.published import Excluded, Prediction, predict, read_rows

UNITS = {"tok_s_gpu": "tokens/s/GPU", "tflops_gpu": "TFLOP/s/GPU", "mfu_pct": "MFU, %"}


def predicted_table(found: list[Prediction]) -> str:
    head = ["model", "kind", "GPUs", "parallel", "published", "predicted", "error", "quantity", "assumed", "source"]
    rows = [
        [
            p.row["model"], p.row["kind"], f"{p.row['gpus']} {p.row['gpu'].split(',')[0]}", p.row["parallel"],
            f"{p.published:,.1f}", f"{p.predicted:,.1f}", f"{p.error:+.0%}", UNITS[p.quantity],
            ", ".join(p.assumed), p.row["source"],
        ]
        for p in sorted(found, key=lambda p: abs(p.error))
    ]  # fmt: skip
    return markdown_table(head, rows)


def excluded_table(found: list[Excluded]) -> str:
    return markdown_table(
        ["model", "parallel", "why it is not predicted", "source"],
        [[e.row["model"], e.row["parallel"], e.reason, e.row["source"]] for e in found],
        left=4,
    )


def summary(predicted: list[Prediction], excluded: list[Excluded]) -> dict[str, object]:
    errors = {kind: [abs(p.error) for p in predicted if p.row["kind"] == kind] for kind in ("moe", "dense")}
    return {
        "median_error": statistics.median(abs(p.error) for p in predicted),
        "median_error_moe": statistics.median(errors["moe"]) if errors["moe"] else None,
        "median_error_dense": statistics.median(errors["dense"]) if errors["dense"] else None,
        "rows_predicted": len(predicted),
        "rows_excluded": len(excluded),
    }


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/planner_accuracy.py --rows published.csv --json",
    )
    parser.add_argument("--rows", required=True, type=Path, help="CSV of published runs")
    parser.add_argument("--json", action="store_true", help="print rows and summary as one JSON object")
    args = parser.parse_args(argv)
    found = [predict(row) for row in read_rows(args.rows)]
    predicted = [f for f in found if isinstance(f, Prediction)]
    excluded = [f for f in found if isinstance(f, Excluded)]
    if not predicted:
        raise UserError(f"--rows {args.rows} has no row that states enough; {len(excluded)} are excluded")
    figures = summary(predicted, excluded)
    if args.json:
        rows = [
            {"model": p.row["model"], "source": p.row["source"], "parallel": p.row["parallel"], "quantity": p.quantity,
             "published": p.published, "predicted": p.predicted, "error": p.error, "assumed": p.assumed}
            for p in predicted
        ]  # fmt: skip
        why = [{"model": e.row["model"], "source": e.row["source"], "reason": e.reason} for e in excluded]
        print(json.dumps({"rows": rows, "excluded": why, **figures}))
        return
    print(predicted_table(predicted), excluded_table(excluded), sep="\n\n")
    print(
        f"\nmedian error {figures['median_error']:.1%} over {len(predicted)} rows "
        f"({len(excluded)} of {len(found)} excluded)"
    )


if __name__ == "__main__":
    sys.exit(main())
