"""Where the tasks of a stage run: processes of this machine, a Ray cluster, or jobs of Slurm.

An engine runs `function(task, number)` for numbered tasks in any order and yields each result. Tasks share
nothing but the file system, which all machines of a cluster must see under one path, as they must this
environment. The function is sent once a phase, not with each task: what is bound to it may be large.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import sys
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from data_prep.core.outcome import Function, outcome_of, result_of
from data_prep.core.slurm import SlurmEngine
from data_prep.core.task_queue import Numbered
from recipe.base.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
TASKS_AHEAD = 2  # handed to the pool for each worker, so that none waits for the driver


class Engine(Protocol):
    def run(
        self, function: Function, tasks: Numbered, workers: int, title: str
    ) -> Generator[tuple[int, Any], None, None]: ...


def make_engine(name: str, options: Sequence[str], scratch: Path) -> Engine:
    """The engine called `name` (local, ray or slurm) with `KEY=VALUE` options; `scratch` is for its own files."""
    settings = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator:
            raise UserError(f"--engine-option takes KEY=VALUE, such as partition=cpu; got '{option}'")
        settings[key] = value
    if name == "local" and settings:
        raise UserError(f"--engine local takes no --engine-option; remove {', '.join(settings)}")
    if name == "local":
        return LocalEngine(scratch)
    return _ray_engine(settings) if name == "ray" else SlurmEngine(settings, scratch)


def _ray_engine(settings: dict[str, str]) -> RayEngine:
    unknown = sorted(set(settings) - {"address", "num_cpus", "max_retries"})
    if unknown:
        raise UserError(f"--engine ray takes address, num_cpus and max_retries, not {', '.join(unknown)}")
    try:
        cpus, retries = float(settings.get("num_cpus", 1)), int(settings.get("max_retries", 3))
    except ValueError:
        raise UserError("--engine-option num_cpus and max_retries take numbers, such as num_cpus=2") from None
    return RayEngine(settings.get("address", os.environ.get("RAY_ADDRESS")), cpus, retries)


class LocalEngine:
    """Processes of this machine, kept from phase to phase; this one alone where one worker is enough.

    Args:
        scratch: folder for the function of a phase.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._pool: ProcessPoolExecutor | None = None
        self._phases = 0

    def run(
        self, function: Function, tasks: Numbered, workers: int, title: str
    ) -> Generator[tuple[int, Any], None, None]:
        if workers == 1 or len(tasks) <= 1:
            for number, task in tasks:
                yield number, function(task, number)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_the_driver)
            # Before Python ends: its own end of a pool may write to a pipe that the pool's thread has closed, and print a traceback.
            weakref.finalize(self, self._pool.shutdown)
        self._phases += 1
        stored = self._scratch / f"function-{os.getpid()}-{self._phases}.pickle"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(pickle.dumps(function))
        running: dict[Future[Any], int] = {}
        done: SimpleQueue[Future[Any]] = SimpleQueue()
        waiting = iter(tasks)
        try:
            while True:
                while len(running) < TASKS_AHEAD * workers and (following := next(waiting, None)) is not None:
                    with _ctrl_c_later():  # a worker that starts inherits this, and says nothing of it either
                        future = self._pool.submit(_run_stored, str(stored), following[1], following[0])
                    running[future] = following[0]
                    future.add_done_callback(done.put)
                if not running:
                    return
                future = done.get()
                yield running.pop(future), future.result()
        except BrokenProcessPool:
            self._end_workers()
            raise UserError(
                f"a worker of {title} was killed, by the system if memory ran out; run again with fewer --workers"
            ) from None
        except BaseException:  # of a task, of who reads the results (GeneratorExit), or ctrl-C
            self._end_workers()
            raise
        finally:
            stored.unlink(missing_ok=True)

    def _end_workers(self) -> None:
        """End all workers in the middle of what they do; what they have not finished is done by the next run."""
        pool, self._pool = self._pool, None
        assert pool is not None
        processes = list((pool._processes or {}).values())  # before `shutdown` forgets them
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """SIGINT comes when this ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_driver() -> None:
    """In a worker: have it killed when its driver is gone, however that ended; else it would go on and write for good.

    The kernel does so at once (prctl(2)); elsewhere than on Linux, and where the driver was gone before, a thread.
    """
    driver = parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches all of them; the driver ends its workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def follow() -> None:
        if driver is not None:
            driver.join()
            os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=follow, daemon=True).start()


def _run_stored(stored: str, task: Any, number: int) -> Any:
    return _stored_function(stored)(task, number)


@lru_cache(maxsize=1)
def _stored_function(stored: str) -> Function:
    return pickle.loads(Path(stored).read_bytes())


@dataclass
class RayEngine:
    """Tasks of a Ray cluster; one whose worker or node dies runs again elsewhere.

    Options: address (default: RAY_ADDRESS, else a cluster on this machine), num_cpus (per task), max_retries.
    """

    address: str | None = None
    num_cpus: float = 1
    max_retries: int = 3

    def run(
        self, function: Function, tasks: Numbered, workers: int, title: str
    ) -> Generator[tuple[int, Any], None, None]:
        import ray

        if not ray.is_initialized():
            _must_answer(self.address)
            ray.init(
                address=self.address, num_cpus=None if self.address else workers, log_to_driver=False, logging_level=30
            )
        remote = ray.remote(num_cpus=self.num_cpus, max_retries=self.max_retries)(outcome_of)
        shared, waiting = ray.put(function), list(reversed(tasks))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    number, task = waiting.pop()
                    running[remote.remote(shared, task, number)] = number
                (done,), _ = ray.wait(list(running))
                number = running.pop(done)
                try:
                    yield number, result_of(ray.get(done))
                except ray.exceptions.WorkerCrashedError:
                    raise UserError(
                        f"the worker of task {number} of {title} died {self.max_retries + 1} times; see the logs of Ray"
                    ) from None
        finally:
            for reference in running:
                ray.cancel(reference)


def _must_answer(address: str | None) -> None:
    """Ray ends the process where no cluster answers, so it is asked for one first."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit():  # a cluster of this machine's, or an address that Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at {address} ({error.strerror}); start one with ray start --head") from None
