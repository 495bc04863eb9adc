"""What a ladder's runs measured, and what a law says of them: one fit and one interval for each source of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.scaling.fit import Exponents, Fit, fit
from recipe.scaling.interval import predict
from recipe.scaling.law import Size


@dataclass(frozen=True)
class Measured:
    """The held-out loss of a finished run.

    Args:
        bits_per_byte, loss: by source, the loss in nats per token.
    """

    size: Size
    bits_per_byte: Mapping[str, float]
    loss: Mapping[str, float]


def fits_of(runs: Sequence[Measured], exponents: Exponents) -> dict[str, Fit]:
    """A law of bits per byte for each source."""
    sizes = [run.size for run in runs]
    return {source: fit(sizes, [run.bits_per_byte[source] for run in runs], exponents) for source in runs[0].loss}


def predictions(fits: Mapping[str, Fit], runs: Sequence[Measured], target: Size) -> dict[str, dict[str, Any]]:
    """By source the target's bits per byte and its loss in nats per token of the ladder's tokenizer, with intervals."""
    told = {}
    for source, fitted in fits.items():
        (bits,) = predict(fitted, [target])
        nats = runs[0].loss[source] / runs[0].bits_per_byte[source]  # of a bit per byte: the same in all runs
        told[source] = {"bits_per_byte": bits.as_dict(), "loss": bits.times(nats).as_dict()}
    return told


def fits_as_dict(fits: Mapping[str, Fit]) -> dict[str, Any]:
    return {
        source: {"law": f.law.as_dict(), "free": list(f.free), "noise": f.noise, "runs": len(f.losses)}
        for source, f in fits.items()
    }
