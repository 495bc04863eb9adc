"""What a rank knows of its own end, left in the run folder for whoever starts the run again.

When memory runs out it also says what the plan expected, what was reached, and the cheapest suggestions.
"""

from __future__ import annotations

import itertools
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from recipe.base.errors import what_to_do
from recipe.base.files import write_text
from recipe.base.hardware import GIB, accelerator_of, cluster_of
from recipe.base.ranks import RESTART, rank
from recipe.engine.collectives import FirstRankFailed
from recipe.run.folder import RunFolder
from recipe.run.job import Job
from recipe.safety.watchdog import Progress

# In the order in which they explain an error: a message may hold the words of several. Each rank's own GPU and memory
# come first, since NCCL reports them too ("NCCL error ... unhandled cuda error") and what happens to the others is their
# consequence. Wordings: c10/cuda/CUDAException.cpp and torch/csrc/distributed/c10d of PyTorch, ncclGetErrorString and
# src/transport of NCCL, gloo/transport/tcp.
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory", re.IGNORECASE)
_OWN_GPU = re.compile(
    r"CUDA (driver )?(error|failure)|CUDA_ERROR_|unhandled cuda error|ncclUnhandledCudaError|device-side assert|"
    r"uncorrectable|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_|\bXid\b|fallen off the bus",
    re.IGNORECASE,
)
# Each rank that waits says so, and none of them is the one that is waited for.
_HANG = re.compile(r"Watchdog caught collective operation timeout|monitoredBarrier", re.IGNORECASE)
# Another rank, or the network to it, is gone; the rank that says so is a witness.
_PEER_LOST = re.compile(
    r"Connection (was )?(likely )?(closed|reset|refused|timed out|aborted)|Software caused connection abort|Broken pipe|"
    r"Socket (closed|timeout)|socket has (timed out|failed to connect)|Connect timeout|No route to host|Network is unreachable|failed to recv, got 0 bytes|"
    r"remote process exited|ncclRemoteError|NCCL communicator was aborted|Got completion from peer|"
    r"closed by (remote )?peer|peer (closed|is gone|disconnected)|"
    r"Timed out (waiting|connecting)|wait timeout after|Application timeout|connectFullMesh failed",
    re.IGNORECASE,
)
# c10/cuda/CUDACachingAllocator.cpp: "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB of which 1.20 GiB is free."
_ASKED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_FREE = re.compile(r"of which ([\d.]+) (bytes|KiB|MiB|GiB) is free")
_IN_GIB = {"bytes": 2**-30, "KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0}
_OF_HOST = re.compile(r"DefaultCPUAllocator")
NO_STEPS = ("evaluating", "saving")  # phases after the first step in which nothing is kept for a backward pass
PLANNED_FOR = "a100-80gb"  # where the GPU is unknown, or there is none
WITNESSES = ("hang", "peer_lost")  # kinds that a rank records of itself without being their cause


def kind_of(error: BaseException) -> str:
    """user_error, out_of_memory, hang, peer_lost or error."""
    of_runtime, message = isinstance(error, RuntimeError), str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (of_runtime and _OUT_OF_MEMORY.search(message)):
        return "out_of_memory"
    if what_to_do(error) is not None:
        return "user_error"
    if isinstance(error, FirstRankFailed):
        return "peer_lost"
    if not of_runtime or _OWN_GPU.search(message):
        return "error"
    if _HANG.search(message):
        return "hang"
    return "peer_lost" if _PEER_LOST.search(message) else "error"


def missing_gib(error: BaseException, progress: Progress | None = None) -> float | None:
    """What a step lacked that ran out of memory; 0 where the error does not say.

    Args:
        progress: of this rank; None: in a step.

    Returns:
        None where fewer kept results would not help: outside the steps, or short of the host's memory beside a GPU.
    """
    if progress is not None and (progress.step == 0 or progress.phase in NO_STEPS):
        return None
    message = str(error)
    if torch.cuda.is_available() and (isinstance(error, MemoryError) or _OF_HOST.search(message)):
        return None
    asked, free = (
        float(found[1]) * _IN_GIB[found[2]] if (found := pattern.search(message)) else 0.0
        for pattern in (_ASKED, _FREE)
    )
    return max(0.0, asked - free)


@contextmanager
def recorded_failures(folder: RunFolder, job: Job, progress: Progress | None = None) -> Iterator[None]:
    """Record an exception that ends the training; of an out-of-memory error say what could be done about it.

    Args:
        progress: of this rank, where it is known.
    """
    try:
        yield
    except BaseException as error:
        kind = kind_of(error)
        message = what_to_do(error) or f"{type(error).__name__}: {_summary(str(error))}"
        try:
            lacks = missing_gib(error, progress) if kind == "out_of_memory" else None
            phase = 0 if progress is None else progress.run_phase
            folder.record_own_failure(kind, message, witness=kind in WITNESSES, missing_gib=lacks, phase=phase)
        except OSError as unwritten:  # the error itself is what must be seen
            _tell(f"rank {rank()} cannot leave word of its failure: {unwritten}")
        if kind == "out_of_memory":
            _tell(f"out of memory: {message}\n{memory_report(job.at(0 if progress is None else progress.run_phase))}")
        if kind in WITNESSES:  # one rank's end makes a traceback on each of the others: to a file
            with suppress(OSError):
                write_text(folder.stacks(rank()), traceback.format_exc())
            how = "lost another rank" if kind == "peer_lost" else "waited for another rank"
            _tell(f"error: rank {rank()} {how}: {message[:200]}")
            raise SystemExit(RESTART) from None
        raise


def memory_report(job: Job) -> str:
    """For the log of the rank that ran out of memory."""
    # Imported late: a run that has memory enough is not compared with its plan.
    from recipe.planner.plan import Plan
    from recipe.planner.search.suggestions import suggestions
    from recipe.planner.workload import Workload, facts_of

    run, cuda = job.run, torch.cuda.is_available()
    known = accelerator_of(torch.cuda.get_device_name()) if cuda else None
    cluster = cluster_of(known.name if known else PLANNED_FOR, job.ds.world_size, None)
    plan = Plan(Workload(job.shape, cluster, job.ds, facts_of(run, len(job.order.names))))
    terms = sorted(plan.memory.at(plan.memory.peak_moment).items(), key=lambda term: -term[1])
    if cuda:
        reached = f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB of tensors, {torch.cuda.max_memory_reserved() / GIB:.1f} GiB reserved"
    else:
        reached = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.1f} GiB by the process"
    lines = [
        f"planned peak   {plan.memory.peak_gib:.1f} GiB in the {plan.memory.peak_moment}: "
        + ", ".join(f"{name} {size:.1f}" for name, size in terms[:4]),
        f"reached        {reached}",
        *(
            f"suggestion     {suggestion}"
            for suggestion in suggestions(plan, selective=run.compute.attention != "flex_attention")[:3]
        ),
    ]
    return "\n".join(lines)


def _tell(message: str) -> None:
    """Print; the exit code must not depend on a standard error that is closed, or whose disk is full."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def _summary(message: str) -> str:
    """The first line, and of NCCL's messages the one that says what happened last."""
    lines = message.strip().splitlines() or [""]
    last = [after for line, after in itertools.pairwise(lines) if line.strip() == "Last error:"]
    return ": ".join([lines[0], *last])
