"""Where the tasks of a stage run: processes of this machine, a Ray cluster, or a Slurm job array.

An engine runs `function(task, number)` for numbered tasks in any order and yields each result. Tasks share
nothing but the file system, which all machines of a cluster must see under one path, as they must this
environment.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from recipe.base.errors import UserError, what_to_do

Function = Callable[[Any, int], dict[str, Any]]
Numbered = Sequence[tuple[int, Any]]


class Engine(Protocol):
    def run(self, function: Function, tasks: Numbered, workers: int, title: str) -> Iterator[tuple[int, Any]]: ...


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
        return LocalEngine()
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
    """Processes of this machine, kept from phase to phase; this one alone where one worker is enough."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Function, tasks: Numbered, workers: int, title: str) -> Iterator[tuple[int, Any]]:
        if workers == 1 or len(tasks) <= 1:
            for number, task in tasks:
                yield number, function(task, number)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        pending = {self._pool.submit(function, task, number): number for number, task in tasks}
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool:
            self._pool = None
            raise UserError(
                f"a worker of {title} was killed, by the system if memory ran out; run again with fewer --workers"
            ) from None
        finally:
            for future in pending:
                future.cancel()


@dataclass
class RayEngine:
    """Tasks of a Ray cluster; one whose worker or node dies runs again elsewhere.

    Options: address (default: RAY_ADDRESS, else a cluster on this machine), num_cpus (per task), max_retries.
    """

    address: str | None = None
    num_cpus: float = 1
    max_retries: int = 3

    def run(self, function: Function, tasks: Numbered, workers: int, title: str) -> Iterator[tuple[int, Any]]:
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs Ray; install it with pip install 'deepspeed-moe-recipe[ray]'") from None
        if not ray.is_initialized():
            _must_answer(self.address)
            ray.init(
                address=self.address, num_cpus=None if self.address else workers, log_to_driver=False, logging_level=30
            )
        remote = ray.remote(num_cpus=self.num_cpus, max_retries=self.max_retries)(_outcome)
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
                    yield number, _result(ray.get(done))
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


@dataclass
class SlurmEngine:
    """A job array, through submitit. Each job takes every n-th task; one that Slurm requeues goes on.

    Options: those of sbatch that submitit knows (partition, account, time, mem, cpus_per_task, ...).
    """

    settings: dict[str, str]
    scratch: Path

    def run(self, function: Function, tasks: Numbered, workers: int, title: str) -> Iterator[tuple[int, Any]]:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--engine slurm needs submitit; install it with pip install 'deepspeed-moe-recipe[slurm]'"
            ) from None
        if shutil.which("sbatch") is None:
            raise UserError("--engine slurm found no sbatch; run it on a login node of a Slurm cluster")
        if not tasks:
            return
        jobs = min(workers, len(tasks))
        executor = submitit.SlurmExecutor(folder=self.scratch, python=sys.executable)
        try:
            executor.update_parameters(
                job_name=title.replace(": ", "-"),
                array_parallelism=workers,
                **{key: int(value) if value.isdigit() else value for key, value in self.settings.items()},
            )
        except ValueError as error:
            raise UserError(f"--engine-option: {' '.join(str(error).split())}") from None
        results = self.scratch / "results"
        results.mkdir(parents=True, exist_ok=True)
        shares = [list(tasks[start::jobs]) for start in range(jobs)]
        submitted = executor.map_array(partial(_share, function, results), shares)
        waiting = dict(tasks)
        try:
            while waiting:
                active = _active(submitted)  # asked first, so that no result can come in between
                for number in [n for n in waiting if (results / f"{n}.pickle").exists()]:
                    del waiting[number]
                    yield number, _result(pickle.loads((results / f"{number}.pickle").read_bytes()))
                if waiting and not active:
                    raise UserError(
                        f"Slurm job {submitted[0].job_id.split('_')[0]} of {title} ended before {len(waiting)} of its tasks "
                        f"did; see {self.scratch} and run again"
                    )
                time.sleep(1 if waiting else 0)
        finally:
            if waiting:
                subprocess.run(["scancel", submitted[0].job_id.split("_")[0]], check=False)
        shutil.rmtree(self.scratch)


def _active(jobs: Sequence[Any]) -> bool:
    """Whether Slurm still has any of these jobs; asked of squeue, since many clusters keep no accounts."""
    ids = ",".join(sorted({job.job_id.split("_")[0] for job in jobs}))
    asked = subprocess.run(["squeue", "--noheader", "--jobs", ids], capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return True  # the controller does not answer just now; it will say
    return bool(asked.stdout.strip())


def _outcome(function: Function, task: Any, number: int) -> tuple[str, Any]:
    """A result, or the sentence of an error that the user can act on, which would lose its type on the way."""
    try:
        return "result", function(task, number)
    except Exception as error:
        message = what_to_do(error)
        if message is None:
            raise
        return "error", message


def _result(outcome: tuple[str, Any]) -> Any:
    kind, value = outcome
    if kind == "error":
        raise UserError(value)
    return value


def _share(function: Function, results: Path, tasks: Numbered) -> None:
    """What one job of an array does: its tasks, but for those an earlier try has done."""
    for number, task in tasks:
        target = results / f"{number}.pickle"
        if not target.exists():
            partial_target = target.with_suffix(".partial")
            partial_target.write_bytes(pickle.dumps(_outcome(function, task, number)))
            partial_target.replace(target)
