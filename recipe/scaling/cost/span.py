"""An expected number and how far it may be off to both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """What is expected, the least and the most; the most may be infinite."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float, float]:
        """In rising order, as the planner's range of assumptions: least, expected, most."""
        return self.low, self.value, self.high

    def written(self, number: Callable[[float], str]) -> str:
        """Such as `9.9 (8.1 to 12.0)`."""
        return f"{number(self.value)} ({number(self.low)} to {number(self.high) if math.isfinite(self.high) else 'no end'})"

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity."""
        return {name: number if math.isfinite(number) else None for name, number in vars(self).items()}
