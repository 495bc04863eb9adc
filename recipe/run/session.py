"""One DeepSpeed session: environment of the launcher, process group, and an orderly end on every path."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import deepspeed
import torch
import torch.distributed as dist

from recipe.run.cpu_op import ensure_cpu_op, remove_shared_memory


@contextmanager
def session() -> Iterator[None]:
    """Process group up, and down again whatever happens; DeepSpeed's chatter kept to warnings."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.utils.logger.setLevel(logging.WARNING)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with redirect_stdout(sys.stderr):  # the op builder and init print to standard output
        ensure_cpu_op()
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
        remove_shared_memory()
