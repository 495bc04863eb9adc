"""Reads the ladder.json that launch/ladder.py writes, and predicts the loss of a run that it was not written for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError
from recipe.base.strict import load_json
from recipe.scaling.fit import Fit
from recipe.scaling.law import Size
from recipe.scaling.measured import Measured, fits_of, predictions

SCHEMA, VERSION = "recipe.ladder", 1


@dataclass(frozen=True)
class Ladder:
    """The runs of a finished ladder, and the law of each source that was fitted to them all."""

    path: Path
    runs: tuple[Measured, ...]
    fits: Mapping[str, Fit]

    def problem_with(self, size: Size) -> str | None:
        """Why it says nothing of a model, whatever its tokens; None where it does."""
        shares = {run.size.share for run in self.runs}
        if len(shares) > 1 or size.share in shares:
            return None
        return (
            f"the ladder of {self.path} has an active share of {shares.pop():.3f} and the model {size.share:.3f}, of which the "
            "ladder says nothing; run a ladder of this model's family"
        )

    @property
    def largest(self) -> dict[str, float]:
        """Active parameters and tokens, each the most of any run."""
        return {name: max(getattr(run.size, name) for run in self.runs) for name in ("active", "tokens")}

    @property
    def exponents_fitted(self) -> bool:
        return "alpha" in next(iter(self.fits.values())).free


def load_ladder(path: Path) -> Ladder:
    """The ladder of a ladder.json, or of the result of benchmarks/ladder.py, which has one.

    Raises:
        UserError: no finished ladder, or one of a newer version.
    """
    record = load_json(path)
    if isinstance(record, dict) and "ladder" in record:
        record = record["ladder"]
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("version") != VERSION:
        raise UserError(f"{path} is no ladder.json of version {VERSION}; give the one that launch/ladder.py wrote")
    if "fits" not in record:
        raise UserError(f"the ladder of {path} is not finished; give its launch/ladder.py command again")
    runs = tuple(_measured(run) for run in (*record["runs"], record["held_out"]))
    return Ladder(path, runs, fits_of(runs, record["exponents"]))


def planned_loss(ladder: Ladder, target: Size) -> dict[str, Any]:
    """The bits per byte and the loss of a run of this size with intervals, by source, and what they rest on.

    Raises:
        UserError: a target that the ladder says nothing of.
    """
    if problem := ladder.problem_with(target):
        raise UserError(problem)
    times = {name: getattr(target, name) / value for name, value in ladder.largest.items()}
    return {
        "sources": predictions(ladder.fits, ladder.runs, target),
        "basis": {
            "runs": len(ladder.runs), "largest": ladder.largest, "times": times, "exponents_fitted": ladder.exponents_fitted,
        },
    }  # fmt: skip


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
