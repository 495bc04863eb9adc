"""The settings of packing: the length of a sequence, and how much of which source and which lengths goes into the result."""

from __future__ import annotations

import math

from pydantic import Field

from recipe.base.strict import Section

Lengths = dict[int, float]  # fewest tokens of a document -> share of the tokens, up to the next larger key


class SourceAmount(Section):
    """What is taken of one source."""

    tokens: int | None = Field(None, gt=0)
    share: float | None = Field(None, gt=0, le=1)
    lengths: Lengths | None = None

    def problems(self, name: str) -> list[str]:
        both = self.tokens is not None and self.share is not None
        return [f"{name} has both tokens and share; keep one"] * both + _problems_of(
            f"{name}.lengths", self.lengths or {}
        )


class PackConfig(Section):
    """Of data_prep/configs/pack.yaml, which says what each key means."""

    seq_length: int = Field(ge=2)
    lengths: Lengths = {}
    sources: dict[str, SourceAmount] = {}
    max_shard_tokens: int = Field(75_000_000, gt=0)

    def problems(self) -> list[str]:
        of_sources = [p for name, amount in self.sources.items() for p in amount.problems(f"sources.{name}")]
        return _problems_of("lengths", self.lengths) + of_sources

    def amount(self, source: str) -> SourceAmount | None:
        """What is taken of a source; None where it is left out."""
        return self.sources.get(source) if self.sources else SourceAmount()

    def lengths_of(self, source: str) -> Lengths:
        """Bounds and shares, the bounds ascending; all documents where none are set."""
        amount = self.amount(source)
        own = amount.lengths if amount is not None else None
        return dict(sorted((own or self.lengths or {1: 1.0}).items()))


def _problems_of(name: str, lengths: Lengths) -> list[str]:
    if any(least < 1 for least in lengths):
        return [f"{name} has a key below 1; a key is the fewest tokens of a document"]
    if not all(0 < share < math.inf for share in lengths.values()):
        return [f"{name} has a share that is not a positive number; leave its key out"]
    return []
