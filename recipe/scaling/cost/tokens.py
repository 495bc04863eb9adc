"""How many tokens a model takes to a target loss: the law and its interval, read the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from recipe.scaling.cost.span import Span
from recipe.scaling.fit import Fit
from recipe.scaling.interval import predict
from recipe.scaling.law import Floats, Law, Size

LEAST, MOST = 1e6, 1e16  # tokens between which the ends of the interval are looked for
PER_DECADE = 16


def lowest_loss(law: Law, size: Size) -> float:
    """What the loss of a model comes to with ever more tokens."""
    return law.loss(replace(size, tokens=math.inf))


def expected_tokens(law: Law, size: Size, loss: float) -> float:
    """After which the law has this loss; infinite where it never has it."""
    left = loss - lowest_loss(law, size)
    return float((law.B / left) ** (1 / law.beta)) if left > 0 else math.inf


def tokens_to_loss(fits: Mapping[str, Fit], targets: Mapping[str, float], sizes: Sequence[Size]) -> list[Span]:
    """Of models the tokens after which each named source has its target loss.

    The least tokens are those whose interval begins to hold the target, the most those from which on it lies below.

    Args:
        sizes: of the models; their tokens do not count.
    """
    by_source = [_of_source(fits[source], loss, sizes) for source, loss in targets.items()]
    return [
        Span(*(max(getattr(span, end) for span in spans) for end in ("value", "low", "high")))
        for spans in zip(*by_source, strict=True)
    ]


def _of_source(fitted: Fit, loss: float, sizes: Sequence[Size]) -> list[Span]:
    grid = np.geomspace(LEAST, MOST, round(math.log10(MOST / LEAST)) * PER_DECADE + 1)
    predicted = predict(fitted, [replace(size, tokens=tokens) for size in sizes for tokens in grid.tolist()])
    ends = np.array([(p.low, p.high) for p in predicted]).reshape(len(sizes), len(grid), 2)
    spans = []
    for size, (lows, highs) in zip(sizes, np.moveaxis(ends, 2, 1), strict=True):
        value = expected_tokens(fitted.law, size, loss)
        low, high = _first(grid, lows <= loss), _first(grid, np.logical_and.accumulate(highs[::-1] <= loss)[::-1])
        # The ends are drawn, and of a grid: where the interval is narrower than a step of it they may lie beside the value.
        spans.append(Span(value, min(low, value), max(high, value)))
    return spans


def _first(grid: Floats, reached: np.ndarray) -> float:
    return float(grid[np.argmax(reached)]) if reached.any() else math.inf
