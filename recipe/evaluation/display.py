"""What an evaluation prints: a line of progress on rank 0, and a table of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recipe.base.ranks import is_first_rank
from recipe.base.tables import ProgressLine

LOG_EVERY_S = 30.0


def progress_line(title: str, total: int, clock: Callable[[], float] = time.monotonic) -> ProgressLine:
    """How far something is: on a terminal a line that is written over, in a log a line every `LOG_EVERY_S`."""
    return ProgressLine(title, total, clock=clock, log_every_s=LOG_EVERY_S, shown=is_first_rank())


def aligned_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns of a terminal's width each: the first `left` aligned left, the others right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    cells = [
        [text.ljust(width) if column < left else text.rjust(width) for column, (text, width) in enumerate(pairs)]
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def write_scalars(board: Path, scalars: Mapping[str, float], step: int) -> None:
    """Add the values of tags to the TensorBoard folder of a run."""
    from torch.utils.tensorboard import SummaryWriter  # late: it brings torch

    with SummaryWriter(str(board)) as writer:
        for tag, value in scalars.items():
            writer.add_scalar(tag, value, step)


def where_results_are(output: Path | None, board: Path | None = None, tags: str = "eval/...") -> str:
    """The last line of an evaluation.

    Args:
        output: the JSON file.
        board: TensorBoard's folder, where they are there too, under `tags`.
    """
    if output is None:
        return "not written to a file; give --output FILE to keep the results"
    return f"written to {output}" + (f", and for TensorBoard to {board} (tags {tags})" if board is not None else "")
