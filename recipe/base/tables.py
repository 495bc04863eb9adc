"""Markdown tables, and durations as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first `left` columns are aligned left and the others right."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def duration(seconds: float) -> str:
    """Such as 12d 03h, 3h 07m, 4m 05s, 7.5 s."""
    minutes = int(seconds / 60)
    if minutes >= 24 * 60:
        return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {int(seconds % 60):02d}s" if minutes else f"{seconds:.1f} s"
