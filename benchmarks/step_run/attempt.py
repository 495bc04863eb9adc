"""A contender in a process of its own: what it measures there, and how the script starts, follows and ends it."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import CONTENDERS, MODULES, OWN_MODULES, TRACED
from benchmarks.gpu_run.child import Ended, last_line
from benchmarks.kernel_cases.measuring import synchronize
from benchmarks.moe_layer import place_of_rank
from benchmarks.step_run.contender import CUDA, DEVICE, DTYPE, Case, Contender
from launch.cluster.hosts import free_port
from recipe.base.files import write_json
from recipe.base.hardware import GIB
from recipe.base.strict import load_json

# Steps before those that are measured: of uniform ones the first compiles, the second compiles for rows that vary; text
# comes after them and brings other sizes of experts alone.
WARM_UP = {"uniform": 3, "text": 2}
PROFILED = 2
BATCHES = 4  # of each kind, which the steps go through again and again
ZIPF_OFFSET = 2.7
START = "spawn" if CUDA else "fork"  # how a contender's process comes to be
PR_SET_PDEATHSIG = 1  # linux/prctl.h


# In a contender's process.


def matmul_ceiling() -> float:
    """FLOP/s of large square matmuls in the precision of the contenders, which no step can exceed."""
    size, times = (8192, 40) if CUDA else (1024, 4)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    for _ in range(5 if CUDA else 1):
        a @ b
    synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        a @ b
    synchronize()
    seconds = time.perf_counter() - begun
    del a, b
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return times * 2 * size**3 / seconds


def peak_gib() -> float:
    """The most that the device had in use: the caching allocator's reserve and what lies outside it."""
    if CUDA:
        free, total = torch.cuda.mem_get_info()
        return (torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()) / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def batches_of(kind: str, case: Case) -> list[np.ndarray]:
    """The tokens [B, S + 1] of a kind, the same in every process."""
    random, vocabulary = np.random.default_rng(0), case.shape.vocab_size
    frequency = np.ones(vocabulary) if kind == "uniform" else 1 / (np.arange(1, vocabulary + 1) + ZIPF_OFFSET)
    size = (case.micro_batch, case.seq_length + 1)
    return [random.choice(vocabulary, size, p=frequency / frequency.sum()) for _ in range(BATCHES)]


def timed_steps(contender: Contender, kind: str, case: Case, steps: int) -> dict[str, Any]:
    """The time of steps on one kind of tokens, the memory so far, and for ours the load of the busiest expert."""
    from recipe.telemetry.metrics import load_over_mean

    batches, losses, seconds = batches_of(kind, case), [], []
    for number in range(WARM_UP[kind] + steps):
        synchronize()
        started = time.perf_counter()
        loss = contender.step(batches[number % BATCHES], lambda phase: None)
        synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    measured = seconds[-steps:]
    found = {
        "step_s": statistics.median(measured),
        "step_s_range": [min(measured), max(measured)],
        "first_step_s": seconds[0],
        "peak_gib": peak_gib(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    if contender.counts is not None:
        loads = torch.stack([load_over_mean(counts.cpu()).amax(dim=1) for counts in contender.counts[-steps:]])
        found["load_by_layer"] = loads.mean(dim=0).tolist()
        found["load"] = max(found["load_by_layer"])
    return found


def taken_apart(contender: Contender, case: Case) -> dict[str, Any]:
    """Where the time of a step goes."""
    from recipe.reading.breakdown import breakdown, read_trace
    from recipe.telemetry.profiling import traced

    batches = batches_of("uniform", case)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with traced(contender.model, trace) as phases:
            for number in range(PROFILED):
                phases.enter("reading")
                contender.step(batches[number], phases.enter)
        return breakdown(read_trace(trace), PROFILED).as_json()


def measure(name: str, case: Case, steps: int, report: Path) -> None:
    """Write what is found of a contender as it is found; in this process, which must have a process group."""
    found: dict[str, Any] = {"matmul_flops_per_s": matmul_ceiling()}
    write_json(report, found)
    begun = time.perf_counter()
    contender = CONTENDERS[name](case)
    found["build_s"] = time.perf_counter() - begun
    found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in contender.model.parameters())
    if contender.as_installed is not None:
        found["as_installed"] = contender.as_installed
    write_json(report, found)
    found |= timed_steps(contender, "uniform", case, steps)
    write_json(report, found)
    found["text"] = timed_steps(contender, "text", case, steps)
    write_json(report, found)
    if name in TRACED:
        found["breakdown"] = taken_apart(contender, case)
        write_json(report, found)


def import_modules(*names: str) -> None:
    """Import what contenders need; what one of them alone needs and is not installed is its own failure, not all of theirs."""
    for module in MODULES:
        importlib.import_module(module)
    for name in names:
        with suppress(ImportError):
            for module in OWN_MODULES.get(name, ()):
                importlib.import_module(module)


def worker(name: str, case: Case, steps: int, report: Path, log: Path, may_begin: Any) -> None:
    """A contender's process: it imports what it needs, and uses the device once it may."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no GPU is kept when the script is killed
    sys.stdout = sys.stderr = handle = open(log, "w", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):  # and what is not Python
        os.dup2(handle.fileno(), descriptor)
    code = 1
    try:
        from recipe.engine.session import session

        import_modules(name)
        may_begin.wait()
        os.environ.update(place_of_rank(0, 1, free_port()))
        with session():
            measure(name, case, steps, report)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # what libraries do at the end is not measured, and some abort in it


# In the script's own process, which leaves the device alone.


class Attempt:
    """A contender in a process of its own.

    With a GPU it is a new one, so that nothing of another contender is in it, and it is started while the one before is
    still compiling: its imports cost no time then. Without one it is a fork of this process, which has imported everything.
    """

    def __init__(self, name: str, case: Case, steps: int, folder: Path):
        context: Any = multiprocessing.get_context(START)
        number = list(CONTENDERS).index(name)
        self._report, self._log = folder / f"{number}.json", folder / f"{number}.log"
        self._may_begin = context.Event()
        self._process = context.Process(
            target=worker, args=(name, case, steps, self._report, self._log, self._may_begin)
        )
        self._process.start()

    def begin(self) -> None:
        self._may_begin.set()

    def result(self, limit_s: float) -> dict[str, Any]:
        """Its figures; `failed` says why there are none, `cut` why some are missing."""
        self._process.join(limit_s)
        why = None
        if self._process.is_alive():
            self.end()
            why = f"stopped after {limit_s:.0f} s"
        elif self._process.exitcode:
            ended = Ended(self._process.exitcode)
            why = last_line(self._log) if ended.code > 0 else f"{ended.how}; {last_line(self._log)}"
        found = load_json(self._report) if self._report.exists() else {}
        if why is not None:
            found["cut" if "step_s" in found else "failed"] = why
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join()
