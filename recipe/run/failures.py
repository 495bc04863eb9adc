"""What a rank knows of its own end, left in the run folder for whoever starts the run again."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from recipe.base.errors import what_to_do
from recipe.base.files import write_text
from recipe.base.ranks import RESTART, rank
from recipe.run.run_folder import RunFolder

# What gloo and NCCL say when another rank is gone; such a rank is a witness, not the cause.
_PEER_LOST = re.compile(
    r"Connection (closed|reset)|Broken pipe|remote process exited|NCCL (error|communicator)|ncclRemoteError|"
    r"Timed out waiting|Application timeout|Socket closed|peer",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory", re.IGNORECASE)


def kind_of(error: BaseException) -> str:
    """user_error, out_of_memory, peer_lost or error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    ):
        return "out_of_memory"
    if what_to_do(error) is not None:
        return "user_error"
    if isinstance(error, RuntimeError) and _PEER_LOST.search(str(error)):
        return "peer_lost"
    return "error"


@contextmanager
def recorded_failures(folder: RunFolder, memory_report: Callable[[], str]) -> Iterator[None]:
    """Record an exception that ends the training; of an out-of-memory error say what could be done about it."""
    try:
        yield
    except BaseException as error:
        kind = kind_of(error)
        said = what_to_do(error) or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if kind == "out_of_memory":
            print(f"out of memory: {said}\n{memory_report()}", file=sys.stderr, flush=True)
        folder.record_own_failure(kind, said)
        if kind == "peer_lost":  # one rank's end makes a traceback on each of the others: to a file
            write_text(folder.stacks(rank()), traceback.format_exc())
            print(f"error: rank {rank()} lost another rank: {said[:200]}", file=sys.stderr, flush=True)
            raise SystemExit(RESTART) from None
        raise
