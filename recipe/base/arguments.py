"""Types for argparse: numbers that a command line must keep within bounds."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    return _at_least(1, text)


def natural_int(text: str) -> int:
    return _at_least(0, text)


def _at_least(smallest: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < smallest:
        raise argparse.ArgumentTypeError(f"must be at least {smallest}, not {value}")
    return value


def count(text: str) -> float:
    """A number with a decimal suffix: 1T is 1e12, 500B, 30M, 4K."""
    return _with_suffix(text, 1000)


def binary_count(text: str) -> float:
    """A number with a binary suffix, as batches have: 8M is 8 * 2**20."""
    return _with_suffix(text, 1024)


def _with_suffix(text: str, base: int) -> float:
    powers = {"K": 1, "M": 2, "B": 3, "G": 3, "T": 4}
    number, suffix = (text[:-1], text[-1].upper()) if text[-1:].upper() in powers else (text, "")
    try:
        value = float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number such as 8M or 1T") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return value * base ** powers.get(suffix, 0)
