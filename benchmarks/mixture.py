#!/usr/bin/env python3
"""How well forms of a mixture law predict runs that they have not seen: published ones, and proxies of launch/mixture.py.

    python benchmarks/mixture.py --proxies work/mixture/mixture.json --output benchmarks/results/mixture.json

Each form is fitted to 96 of RegMix's runs of 1M parameters (benchmarks/regmix_runs.csv) and predicts 32 others, and the order
of 64 runs of 1B parameters. `--proxies` adds what launch/mixture.py wrote. Prints JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
from scipy.optimize import least_squares  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from benchmarks.moe_layer import machine, report  # noqa: E402
from recipe.base.arguments import output_file  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.scaling.mixture.law import Floats, fit  # noqa: E402
from recipe.scaling.mixture.report import quality_tables  # noqa: E402

RUNS = ROOT / "benchmarks" / "regmix_runs.csv"
FITTED = 96  # runs; the other 32 of this size are left out
Predictor = Callable[[Floats], Floats]


def published(size: str) -> tuple[Floats, dict[str, Floats]]:
    """Shares and losses by target of the runs of a size, `1m` or `1b`."""
    lines = [line for line in RUNS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    head, *rows = (line.split(",") for line in lines)
    table = np.array([[float(cell) for cell in row[1:]] for row in rows if row[0].startswith(size)])
    targets = [name.removeprefix("loss_") for name in head if name.startswith("loss_")]
    shares, losses = table[:, : -len(targets)], table[:, -len(targets) :]
    return shares / shares.sum(1, keepdims=True), dict(zip(targets, losses.T, strict=True))


def linear(shares: Floats, losses: Floats) -> Predictor:
    """RegMix's first regression (arXiv 2407.01492)."""
    coefficients = np.linalg.lstsq(shares, losses, rcond=None)[0]
    return lambda others: others @ coefficients


def exponential(shares: Floats, losses: Floats) -> Predictor:
    """c + exp(t r): data mixing laws (arXiv 2403.16952), which Olmix calls log-linear (arXiv 2602.12237)."""

    def start(floor: float) -> Floats:
        return np.array([floor, *np.linalg.lstsq(shares, np.log(losses - floor), rcond=None)[0]])

    def residuals(position: Floats) -> Floats:
        return np.asarray(np.log(position[0] + np.exp(shares @ position[1:])) - np.log(losses))

    bounds = ([0.0, *[-30.0] * shares.shape[1]], [float(losses.min()), *[10.0] * shares.shape[1]])
    fits = [least_squares(residuals, start(part * losses.min()), bounds=bounds) for part in (0.3, 0.7, 0.9)]
    best = min(fits, key=lambda solution: float(solution.cost)).x
    return lambda others: np.asarray(best[0] + np.exp(others @ best[1:]))


def mixture_law(shares: Floats, losses: Floats) -> Predictor:
    """floor + 1 / sum of value * share**exponent (after arXiv 2507.09404), which launch/mixture.py fits."""
    return fit(shares, losses).law.losses


FORMS = {"linear": linear, "exponential": exponential, "mixture law": mixture_law}


def compared() -> list[dict[str, Any]]:
    (shares, losses), (larger, of_larger) = published("1m"), published("1b")
    rows = []
    for name, form in FORMS.items():
        for target, values in losses.items():
            predict = form(shares[:FITTED], values[:FITTED])
            left_out, measured = predict(shares[FITTED:]), values[FITTED:]
            rows.append(
                {
                    "form": name,
                    "target": target,
                    "rank_correlation": float(spearmanr(left_out, measured).statistic),
                    "error": float(np.sqrt(np.mean(np.log(left_out / measured) ** 2))),
                    "rank_correlation_1b": float(spearmanr(predict(larger), of_larger[target]).statistic),
                }
            )
    return rows


def markdown(result: dict[str, Any]) -> str:
    head = ["form", "held-out text", "rank correlation, 32 runs of 1M", "error", "rank correlation, 64 runs of 1B"]
    rows = [[r["form"], r["target"], f"{r['rank_correlation']:.3f}", f"{r['error']:.2%}", f"{r['rank_correlation_1b']:.3f}"] for r in result["published"]]  # fmt: skip
    published = markdown_table(head, rows, left=2)
    if result["proxies"] is None:
        return published
    record = result["proxies"]
    runs = record["runs"]
    size = f"{len(runs)} proxies of {runs[0]['tokens']:,} tokens, {result['device']}, {result['date']}"
    tables = f"{published}\n\n{size}:\n\n{quality_tables(record)}\n\n"
    if record["proposal"] is None:
        return f"{tables}They propose no mixture."
    shares = record["proposal"]["shares"]
    proposed = ", ".join(f"{n} {s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})" for n, s in shares.items())
    natural = ", ".join(f"{n} {s:.3f}" for n, s in record["natural"]["shares"].items())
    return f"{tables}Natural shares: {natural}. Proposed, with 90% intervals: {proposed}."


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=Path, help="a mixture.json of launch/mixture.py")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    proxies = load_json(args.proxies) if args.proxies else None
    report({**machine(), "published": compared(), "proxies": proxies}, args.output)


if __name__ == "__main__":
    sys.exit(main())
