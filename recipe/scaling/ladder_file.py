"""Reads the ladder.json that launch/ladder.py writes, and predicts the loss of a run that it was not written for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.scaling.law import Size
from recipe.scaling.measured import Measured, fits_of, predictions

SCHEMA, VERSION = "recipe.ladder", 1


def planned_loss(path: Path, target: Size) -> dict[str, Any]:
    """The bits per byte and the loss of a run of this size with intervals, by source, and what they rest on.

    Raises:
        UserError: no finished ladder, one of a newer version, or a target that it says nothing of.
    """
    record = load_json(path)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("version") != VERSION:
        raise UserError(f"{path} is no ladder.json of version {VERSION}; give the one that launch/ladder.py wrote")
    if "fits" not in record:
        raise UserError(f"the ladder of {path} is not finished; give its launch/ladder.py command again")
    runs = [_measured(run) for run in (*record["runs"], record["held_out"])]
    fits = fits_of(runs, record["exponents"])
    shares = {run.size.share for run in runs}
    if len(shares) == 1 and target.share not in shares:
        raise UserError(
            f"the ladder of {path} has an active share of {shares.pop():.3f} and the model {target.share:.3f}, of which the "
            "ladder says nothing; run a ladder of this model's family"
        )
    largest = {name: max(getattr(run.size, name) for run in runs) for name in ("active", "tokens")}
    times = {name: getattr(target, name) / value for name, value in largest.items()}
    fitted = "alpha" in next(iter(fits.values())).free
    return {
        "sources": predictions(fits, runs, target),
        "basis": {"runs": len(runs), "largest": largest, "times": times, "exponents_fitted": fitted},
    }


def _measured(run: dict[str, Any]) -> Measured:
    return Measured(Size(run["active"], run["share"], run["tokens"]), run["bits_per_byte"], run["loss"])


def describe_loss(told: dict[str, Any]) -> str:
    """Two numbers with their interval for each source, and how far the run is from the ladder."""
    basis = told["basis"]
    largest, times = basis["largest"], basis["times"]
    lines = ["loss, by the law of a ladder"]
    for source, both in told["sources"].items():
        bits, nats = both["bits_per_byte"], both["loss"]
        lines.append(
            f"  {source:<10}  {bits['value']:.4f} bits per byte ({bits['low']:.4f} to {bits['high']:.4f}), "
            f"loss {nats['value']:.4f} ({nats['low']:.4f} to {nats['high']:.4f}), {bits['level']:.0%} interval"
        )
    exponents = "are fitted" if basis["exponents_fitted"] else "are published ones, not fitted"
    lines.append(
        f"  from {basis['runs']} runs of up to {largest['active'] / 1e6:.3g}M active parameters and {largest['tokens'] / 1e6:,.4g}M "
        f"tokens; this run has {times['active']:,.3g} and {times['tokens']:,.3g} times as many. The exponents {exponents}. The "
        "interval covers noise between runs, not a law that bends beyond them."
    )
    return "\n".join(lines)
