#!/usr/bin/env python3
"""How far the planner is from runs that others published: every row with its prediction, or why it has none.

Constants of the planner are physical and shared by all rows. `--rows` takes any CSV with the columns of
`recipe/planner/tables/published.py`. `--splits` also fits the free constants on some sources and judges them on the others,
for every source alone and in three folds of sources. `--json` prints one JSON object of all of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.tables import markdown_table
from recipe.planner.tables.fitting import (
    FREE,
    Split,
    constants_of,
    fit,
    grouped_folds,
    one_source_out,
    source_of,
    splits,
)
from recipe.planner.tables.published import Excluded, Prediction, Run, prediction, read_rows, run_of

UNITS = {"tok_s_gpu": "tokens/s/GPU", "tflops_gpu": "TFLOP/s/GPU", "mfu_pct": "MFU, %"}
KINDS = {"all": ("moe", "dense"), "moe": ("moe",), "dense": ("dense",)}
FOLDS = 3


def predicted_table(predicted: Sequence[Prediction]) -> str:
    head = ["model", "kind", "GPUs", "parallel", "published", "predicted", "error", "quantity", "assumed", "source"]
    rows = [
        [
            p.row["model"], p.row["kind"], f"{p.row['gpus']} {p.row['gpu'].split(',')[0]}", p.row["parallel"],
            f"{p.published:,.1f}", f"{p.predicted:,.1f}", f"{p.error:+.0%}", UNITS[p.run.quantity],
            ", ".join(p.assumed), p.row["source"],
        ]
        for p in sorted(predicted, key=lambda p: abs(p.error))
    ]  # fmt: skip
    return markdown_table(head, rows)


def excluded_table(excluded: Sequence[Excluded]) -> str:
    return markdown_table(
        ["model", "parallel", "why it is not predicted", "source"],
        [[e.row["model"], e.row["parallel"], e.reason, e.row["source"]] for e in excluded],
        left=4,
    )


def errors(predicted: Sequence[Prediction]) -> dict[str, dict[str, float | int | None]]:
    """By kind of model: median error, rows, and the share of them whose published value is within the plan's range."""
    of_kind = {kind: [p for p in predicted if p.row["kind"] in kinds] for kind, kinds in KINDS.items()}
    return {
        kind: {
            "median_error": statistics.median(abs(p.error) for p in rows) if rows else None,
            "rows": len(rows),
            "in_range": sum(p.inside for p in rows) / len(rows) if rows else None,
        }
        for kind, rows in of_kind.items()
    }


def reasons(excluded: Sequence[Excluded]) -> dict[str, dict[str, int]]:
    """By kind of model, how many rows are excluded for which reason."""
    return {
        kind: dict(Counter(e.reason for e in excluded if e.row["kind"] in kinds).most_common())
        for kind, kinds in KINDS.items()
    }


def summary(predicted: Sequence[Prediction], excluded: Sequence[Excluded]) -> dict[str, Any]:
    by_kind = errors(predicted)
    return {
        "median_error": by_kind["all"]["median_error"],
        "median_error_moe": by_kind["moe"]["median_error"],
        "median_error_dense": by_kind["dense"]["median_error"],
        "in_range": by_kind["all"]["in_range"],
        "rows_predicted": len(predicted),
        "rows_excluded": len(excluded),
        "shipped": by_kind,
        "reasons": reasons(excluded),
    }


def split_figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Errors on fitted sources and on those left out, with the constants of every fit.

    Raises:
        UserError: all rows are of one source.
    """
    alone, folds = one_source_out(runs), grouped_folds(runs, FOLDS)
    if len(alone) < 2:
        raise UserError("--splits needs rows of two sources or more; give a file that has them")
    values = fit(runs)
    return {
        "fitted_to_all": {"constants": _named(values), **errors([prediction(r, constants_of(values)) for r in runs])},
        "one_source_out": _figures_of(list(splits(runs, alone))),
        f"{FOLDS}_folds": _figures_of(list(splits(runs, folds))),
    }


def _figures_of(made: Sequence[Split]) -> dict[str, Any]:
    judged = [p for s in made for p in s.judged]
    return {
        "fitted_sources": errors([p for s in made for p in s.fitted]),
        "sources_left_out": errors(judged),
        "in_range_mean_of_sources": statistics.mean(_in_range_of_sources(judged)),
        "splits": [
            {
                "left_out": s.left_out,
                "constants": _named(s.values),
                "fitted_sources": errors(s.fitted),
                "sources_left_out": errors(s.judged),
            }
            for s in made
        ],
    }


def _in_range_of_sources(judged: Sequence[Prediction]) -> list[float]:
    sources = {source_of(p.row) for p in judged}
    return [statistics.mean(p.inside for p in judged if source_of(p.row) == source) for source in sorted(sources)]


def _named(values: Sequence[float]) -> dict[str, float]:
    return {free.name: round(float(value), 3) for free, value in zip(FREE, values, strict=True)}


def splits_table(figures: dict[str, Any], by_split: dict[str, Any]) -> str:
    """Median errors, rows, and rows within the range, of the constants that ship and of every way to split."""
    parts = [("shipped constants", figures), ("fitted to all sources", by_split["fitted_to_all"])]
    for name, words in (("one_source_out", "one source left out"), (f"{FOLDS}_folds", f"{FOLDS} folds of sources")):
        parts += [
            (f"{words}: sources fitted", by_split[name]["fitted_sources"]),
            (f"{words}: sources left out", by_split[name]["sources_left_out"]),
        ]
        parts += [(f"{words}: {', '.join(s['left_out'])}", s["sources_left_out"]) for s in by_split[name]["splits"]]
    return markdown_table(
        ["judged", *(f"{kind}: {word}" for kind in KINDS for word in ("error", "rows", "in range"))],
        [[name, *(cell for kind in KINDS for cell in _cells(part[kind]))] for name, part in parts],
    )


def _cells(of_kind: dict[str, Any]) -> tuple[str, str, str]:
    if not of_kind["rows"]:
        return "-", "0", "-"
    return f"{of_kind['median_error']:.1%}", f"{of_kind['rows']}", f"{of_kind['in_range']:.0%}"


def constants_table(by_split: dict[str, Any]) -> str:
    made = by_split["one_source_out"]["splits"]
    fitted = by_split["fitted_to_all"]["constants"]
    rows = []
    for free in FREE:
        values = [s["constants"][free.name] for s in made]
        rows.append(
            [free.name, f"{free.prior:.2f}", f"{fitted[free.name]:.2f}", f"{min(values):.2f} to {max(values):.2f}"]
        )
    return markdown_table(["constant", "before any row", "fitted to all", "one source left out"], rows)


def reasons_table(by_kind: dict[str, dict[str, int]]) -> str:
    rows = [
        [reason, str(count), *(str(by_kind[kind].get(reason, 0)) for kind in ("moe", "dense"))]
        for reason, count in by_kind["all"].items()
    ]
    return markdown_table(["excluded because", "rows", "moe", "dense"], rows)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/planner_accuracy.py --rows published.csv --splits --json",
    )
    parser.add_argument("--rows", required=True, type=Path, help="CSV of published runs")
    parser.add_argument("--splits", action="store_true", help="also fit on some sources and judge on the others")
    parser.add_argument("--json", action="store_true", help="print rows and summary as one JSON object")
    args = parser.parse_args(argv)
    read = [run_of(row) for row in read_rows(args.rows)]
    runs = [r for r in read if isinstance(r, Run)]
    excluded = [r for r in read if isinstance(r, Excluded)]
    if not runs:
        raise UserError(f"--rows {args.rows} has no row that states enough; {len(excluded)} are excluded")
    predicted = [prediction(run) for run in runs]
    figures = summary(predicted, excluded)
    by_split = split_figures(runs) if args.splits else None
    if args.json:
        print(json.dumps(_as_json(predicted, excluded) | figures | ({"splits": by_split} if by_split else {})))
        return
    print(predicted_table(predicted), excluded_table(excluded), reasons_table(figures["reasons"]), sep="\n\n")
    if by_split:
        print("", splits_table(figures["shipped"], by_split), constants_table(by_split), sep="\n\n")
    print(
        f"\nmedian error {figures['median_error']:.1%} over {len(predicted)} rows ({len(excluded)} of {len(read)} "
        f"excluded); {figures['in_range']:.0%} of them are within the plan's range"
    )


def _as_json(predicted: Sequence[Prediction], excluded: Sequence[Excluded]) -> dict[str, Any]:
    rows = [
        {"model": p.row["model"], "source": p.row["source"], "parallel": p.row["parallel"], "quantity": p.run.quantity,
         "published": p.published, "predicted": p.predicted, "low": p.low, "high": p.high, "error": p.error,
         "assumed": p.assumed}
        for p in predicted
    ]  # fmt: skip
    why = [{"model": e.row["model"], "source": e.row["source"], "reason": e.reason} for e in excluded]
    return {"rows": rows, "excluded": why}


if __name__ == "__main__":
    sys.exit(main())
