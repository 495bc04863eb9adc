#!/usr/bin/env python3
"""One paragraph for the README and docs/performance.md: what a GPU has measured of this recipe, and what is still planned.

python benchmarks/gpu_status.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.gpu_run.result import RESULTS, results_in  # noqa: E402

# The peer of our first contender: the same parallelism with stock parts.
PEER = "transformers, DeepSpeed AutoEP ZeRO-1"


def training_step(step: dict[str, Any]) -> str | None:
    """Measured tokens/s of our first contender, beside the peer; None where a GPU has not measured it."""
    case = step["case"]
    measured = {name: line for name, line in step["contenders"].items() if line.get("tokens_per_s")}
    ours = next((name for name in measured if name.startswith("ours")), None)
    if case["precision"] != "bfloat16" or ours is None:
        return None
    rate = measured[ours]["tokens_per_s"]
    beside = f", {rate / measured[PEER]['tokens_per_s']:.1f} times `{PEER}`" if PEER in measured else ""
    return (
        f"Measured on one {step['device']}, {step['date']}: {case['layers']} layers of {case['model']} train {rate:,.0f} tokens/s "
        f"(`{ours}`){beside}."
    )


def checks(values: dict[str, Any]) -> str:
    outcomes = [line["outcome"] for line in values["right"]]
    failed = len(outcomes) - outcomes.count("passed") - outcomes.count("not possible")
    constants = (values["calibration"] or {}).get("constants", {}).values()
    calibrated = "; the planner's constants are calibrated" if any(c["measured"] is not None for c in constants) else ""
    return (
        f"`make gpu` on one {values['device']}, {values['date']}: {outcomes.count('passed')} checks passed, {failed} failed or not "
        f"done, {outcomes.count('not possible')} not possible there{calibrated}."
    )


def status(results: Path) -> str:
    """The newest of each alone, since the README has room for that."""
    ran = [result.values for result in reversed(results_in(results / "gpu")) if not result.values["small"]]
    files = [json.loads(file.read_text(encoding="utf-8")) for file in results.glob("train_step*.json")]
    files.sort(key=lambda step: step["date"], reverse=True)
    steps = [*(values["train_step"] for values in ran if values["train_step"] is not None), *files]
    step = next((sentence for step in steps if (sentence := training_step(step)) is not None), None)
    return " ".join([
        step or "No GPU has measured the training step yet; its times are planned.",
        checks(ran[0]) if ran else "`make gpu` has not run on a GPU yet.",
    ])  # fmt: skip


if __name__ == "__main__":
    print(status(RESULTS))
