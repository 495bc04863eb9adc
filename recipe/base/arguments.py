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
