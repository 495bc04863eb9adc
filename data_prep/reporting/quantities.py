"""Numbers as the data report writes them."""

from __future__ import annotations

from recipe.base import tables


def counted(number: int, noun: str) -> str:
    """Such as `1 document` and `7,200 documents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes in decimal units, on one line: a kB is 1,000 bytes."""
    return tables.size(number).replace(" ", "\N{NO-BREAK SPACE}")


def percent(share: float) -> str:
    """Such as `91.2%`; what is not nothing is not written as 0, and what is not all not as 100."""
    if share in (0, 1):
        return f"{share:.0%}"
    if 0 < share < 0.0005:
        return "< 0.1%"
    return "> 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"
