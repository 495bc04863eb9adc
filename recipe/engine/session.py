"""One DeepSpeed session: environment of the launcher, process group, and an orderly end on every path."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TextIO, cast

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from recipe.base.ranks import remove_shared_memory
from recipe.base.settings import Watch
from recipe.engine.cpu_op import ensure_cpu_op
from recipe.engine.deepspeed_private import default_group_timeout, log_level
from recipe.run.timeouts import NCCL_MONITOR, group_timeout_s, rendezvous_timeout_s


@contextmanager
def session(watch: Watch | None = None) -> Iterator[None]:
    """Process group up, and down again whatever happens; DeepSpeed's chatter kept to warnings.

    Args:
        watch: of the run; every process group waits longer than its watchdog.

    Raises:
        UserError: the environment ends a hung job before the watchdog does.
    """
    timeout_s = group_timeout_s(watch or Watch())
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    log_level(logging.WARNING)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with default_timeout(timedelta(seconds=timeout_s)) as timeout:
        # The op builder and init print to standard output.
        with redirect_stdout(cast(TextIO, WithoutBuildNote(sys.stderr))):
            ensure_cpu_op()
            store = _meet()
            deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", timeout=timeout)
        del store  # the process group has its own
        try:
            yield
            dist.barrier()
        finally:
            dist.destroy_process_group()
            remove_shared_memory()


class WithoutBuildNote(io.TextIOBase):
    """A stream without the one line that deepspeed/comm/torch.py (0.19.8) prints on every CPU rank, also where nothing is built."""

    NOTE = re.compile(r"DeepSpeed \S+ built successfully\n?")

    def __init__(self, stream: TextIO):
        self._stream, self._drops_newline = stream, False

    def write(self, text: str) -> int:
        drops = self.NOTE.fullmatch(text) is not None or (self._drops_newline and text == "\n")
        self._drops_newline = drops and not text.endswith("\n")  # print writes the end of a line by itself
        if not drops:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _meet() -> dist.Store:
    """Wait until all ranks are there. What follows, the rendezvous of the process group, has the long timeout of the groups.

    torch shares the store's server with the process group, at the same address and port, as long as this one is held.

    Raises:
        DistStoreError: on rank 0, some are not; on the others, rank 0 is not.
    """
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=rendezvous_timeout_s())))
    return store


@contextmanager
def default_timeout(timeout: timedelta) -> Iterator[timedelta]:
    """Every process group made meanwhile has this timeout, and NCCL's monitor too unless the environment says otherwise."""
    monitor_is_set = NCCL_MONITOR.name in os.environ
    os.environ.setdefault(NCCL_MONITOR.name, f"{timeout.total_seconds():.0f}")
    try:
        with default_group_timeout(timeout):
            yield timeout
    finally:
        if not monitor_is_set:
            os.environ.pop(NCCL_MONITOR.name, None)
