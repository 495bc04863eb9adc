"""Tasks as job arrays of Slurm, whose jobs take them one at a time from a queue in the stage's folder.

So a slow node costs no more than the tasks that it holds, and what a job had that was killed, ran out of time or lost
its node goes to others. submitit's arrays, which were here before, give each job a fixed share, and end after five
minutes where no time is asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.core.outcome import Function, result_of
from data_prep.core.task_queue import Numbered, TaskQueue
from recipe.base.errors import UserError

OWN_OPTIONS = (
    "array",
    "chdir",
    "error",
    "export",
    "job-name",
    "output",
    "parsable",
    "quiet",
    "test-only",
    "wait",
    "wrap",
)
DROPPED = ("SLURM_", "SQUEUE_", "SCANCEL_", "SBATCH_WAIT", "SBATCH_CLUSTERS")  # of the environment
ARRAY_JOBS = 1000  # of one array: MaxArraySize is 1001 where a site has not set it (slurm.conf(5))
ATTEMPTS = 3  # jobs that may end while they hold one task, and arrays in a row that may end without a result
POLL_S = 1.0  # between looks at the results
JOBS_POLL_S = 30.0  # between questions to the controller, once a phase has run for some minutes
MORE_JOBS_S = 60.0  # between arrays that replace lost jobs while others still work
ANSWER_S = 60.0  # for a command of Slurm, which hangs while the controller does
GONE_S = 60.0  # for jobs of an earlier driver to leave
JOB_NAME = "job_name"  # file of a queue with the name of its jobs

WAIT_S = 60.0  # before it is told why all jobs wait
# squeue(1), JOB REASON CODES: what no time mends, and what does.
STUCK = {
    "JobHeldUser": "release them with scontrol release, or remove hold from --engine-option",
    "JobHeldAdmin": "ask who runs the cluster to release them",
    "DependencyNeverSatisfied": "remove dependency from --engine-option",
    "PartitionTimeLimit": "give a shorter --engine-option time=",
    "launch failed requeued held": "ask who runs the cluster why jobs fail to launch on its nodes",
}

# squeue(1): a job in these states has processes, or may have; one that waits has none, also after a requeue.
WITH_PROCESSES = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}  # fmt: skip


def sbatch_options(settings: dict[str, str]) -> list[str]:
    """`KEY=VALUE` as options of sbatch, which checks them when the first array is submitted.

    Raises:
        UserError: an option that the engine sets itself.
    """
    names = {key: key.replace("_", "-") for key in settings}
    refused = [key for key, name in names.items() if not name or any(own.startswith(name) for own in OWN_OPTIONS)]
    if refused:
        raise UserError(f"--engine slurm sets {', '.join(refused)} itself; remove it from --engine-option")
    others = [key for key, name in names.items() if name == "M" or "clusters".startswith(name)]
    if others:
        raise UserError(
            f"--engine slurm sees the jobs of its own cluster alone; remove {', '.join(others)} from --engine-option and "
            "run on a login node of the other"
        )
    return [f"--{names[key]}={value}" if value else f"--{names[key]}" for key, value in settings.items()]


class Jobs:
    """The jobs of one phase of one stage, which all have one name."""

    def __init__(self, name: str, options: Sequence[str], folder: Path):
        self.name, self.options, self.folder = name, list(options), folder
        self.logs = folder / "logs"

    def submit(self, jobs: int) -> None:
        """Submit so many jobs.

        Raises:
            UserError: sbatch refused them, with what it said.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        # Before there are jobs, so that whatever comes after a driver that was killed knows of them.
        (self.folder / JOB_NAME).write_text(self.name)
        script = (
            f"#!/bin/sh\nexec {shlex.join([sys.executable, '-m', 'data_prep.core.slurm_worker', str(self.folder)])}\n"
        )
        log = str(self.logs).replace("%", "%%") + "/%A_%a.log"
        for start in range(0, jobs, ARRAY_JOBS):
            words = [
                "sbatch",
                "--parsable",
                *self.options,
                f"--array=0-{min(ARRAY_JOBS, jobs - start) - 1}",
                f"--job-name={self.name}",
                f"--output={log}",
                f"--chdir={os.getcwd()}",
                "--export=ALL",
            ]
            done = _answer(words, script)
            if done is None:
                raise UserError(
                    f"sbatch did not answer in {ANSWER_S:.0f} s; run again when the controller of Slurm does"
                )
            if done.returncode:
                message = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
                raise UserError(
                    f"sbatch refused the jobs of --engine slurm ({message}); correct --engine-option or --workers"
                )

    def states(self) -> dict[str, str] | None:
        """State by ARRAY_INDEX of all that wait or run, and why they wait: "PENDING Resources".

        None where the controller does not answer just now.
        """
        words = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%i %T %r"]
        asked = _answer(words)
        if asked is None or asked.returncode:
            return None
        return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())

    def cancel(self, *options: str) -> None:
        _answer(["scancel", f"--name={self.name}", *options])

    def end_earlier(self) -> None:
        """Cancel what a driver has left that was killed, and wait until it is gone.

        Raises:
            UserError: it stays, or the controller does not answer.
        """
        end = time.monotonic() + GONE_S
        while (states := self.states()) != {}:
            if time.monotonic() > end:
                raise UserError(
                    f"squeue --name={self.name} still has jobs of an earlier run of this stage, or does not answer; "
                    "wait for their end and run again"
                )
            if states:
                self.cancel()
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """The last line that a job has written to its log."""
        logs = sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "nothing"


def end_recorded_jobs(scratch: Path) -> None:
    """End the jobs that a driver which was killed has left to the queues of `scratch`; nothing where there are none.

    Raises:
        UserError: they stay, or cannot be asked for on this machine.
    """
    for record in sorted(scratch.glob(f"*/{JOB_NAME}")):
        name = record.read_text()
        if shutil.which("squeue") is None or shutil.which("scancel") is None:
            raise UserError(
                f"an earlier run with --engine slurm may have left jobs that write to this output, and this machine has "
                f"no squeue and scancel to end them; run scancel --name={name} on a login node and delete {record}"
            )
        Jobs(name, [], record.parent).end_earlier()
        record.unlink(missing_ok=True)


@dataclass
class SlurmEngine:
    """Jobs that share a queue of tasks.

    Args:
        settings: options of sbatch (partition, account, time, mem, cpus_per_task, ...). Without `time` the partition's
            own limit holds.
        scratch: folder for queues and logs, which all machines see.
    """

    settings: dict[str, str]
    scratch: Path

    def __post_init__(self) -> None:
        self._options = sbatch_options(self.settings)

    def run(
        self, function: Function, tasks: Numbered, workers: int, title: str
    ) -> Generator[tuple[int, Any], None, None]:
        for command in ("sbatch", "squeue", "scancel"):
            if shutil.which(command) is None:
                raise UserError(f"--engine slurm found no {command}; run it on a login node of a Slurm cluster")
        if not tasks:
            return
        scratch = self.scratch.resolve()
        phase = re.sub(r"[^A-Za-z0-9]+", "-", title)
        name = f"{phase}-{hashlib.sha256(os.fsencode(scratch)).hexdigest()[:8]}"
        queue = TaskQueue(scratch / phase)
        jobs = Jobs(name, self._options, queue.folder)
        jobs.end_earlier()
        waiting = dict(tasks)
        for number in sorted(queue.results() & waiting.keys()):  # of an earlier driver, which did not read them
            outcome = queue.result(number)
            if outcome[0] == "result":
                yield number, result_of(outcome)
                del waiting[number]
        shutil.rmtree(queue.folder, ignore_errors=True)
        if not waiting:
            return
        queue.write(function, list(waiting.items()))
        try:
            jobs.submit(min(workers, len(waiting)))
            yield from _Driver(queue, jobs, waiting, workers, title).results()
        finally:
            # The last to work are about to leave by themselves; the others have nothing to do.
            jobs.cancel(*([] if waiting else ["--state=PENDING"]))
            queue.close()
        shutil.rmtree(queue.folder, ignore_errors=True)


class _Driver:
    """Reads the results of a queue, and sees to it that there are jobs to work on it."""

    def __init__(self, queue: TaskQueue, jobs: Jobs, waiting: dict[int, Any], workers: int, title: str):
        self._queue, self._jobs, self._waiting, self._workers, self._title = queue, jobs, waiting, workers, title
        self._workers_of: dict[int, str] = {}  # of the tasks that are taken
        self._suspects: set[tuple[int, str]] = set()  # tasks and workers that were gone at the last look
        self._ended: Counter[int] = Counter()  # workers that ended while they had the task
        self._began = self._submitted = time.monotonic()
        self._left_when_submitted, self._fruitless = len(waiting), 0
        self._told_that_jobs_wait = False

    def results(self) -> Iterator[tuple[int, Any]]:
        next_look = 0.0
        while self._waiting:
            for number in sorted(self._queue.results()):
                if number in self._waiting:
                    outcome = self._queue.result(number)
                    del self._waiting[number]
                    yield number, result_of(outcome)
                self._queue.discard(number)
            age = time.monotonic() - self._began
            if self._waiting and age >= next_look:
                self._look()
                next_look = age + (POLL_S if self._suspects else min(JOBS_POLL_S, 1 + age / 20))
            time.sleep(min(POLL_S, 0.1 + age / 20) if self._waiting else 0)

    def _look(self) -> None:
        """Release the tasks of workers that are gone, and submit jobs if too few are left.

        The claims are read first: who had a task then and is no longer there now has ended. The results are read last:
        what is not there then will not come.
        """
        self._queue.refresh("driver")
        self._read_claims()
        states = self._jobs.states()
        if states is None:
            return
        self._tell_why_jobs_wait(states)
        self._queue.refresh("driver")
        lives = self._lives()
        done = self._queue.results()
        gone = {
            (number, worker)
            for number, worker in self._workers_of.items()
            if number not in done and not _works(worker, states, lives)
        }
        for number, worker in sorted(gone & self._suspects):
            self._release(number, worker)
        self._suspects = gone - self._suspects
        self._keep_jobs(len(states), len(self._waiting.keys() - self._workers_of.keys() - done))

    def _tell_why_jobs_wait(self, states: dict[str, str]) -> None:
        """Once, where all jobs have waited for a minute.

        Raises:
            UserError: all of them wait for what will not come.
        """
        reasons = [reason for state, _, reason in (s.partition(" ") for s in states.values()) if state == "PENDING"]
        if not reasons or len(reasons) < len(states) or time.monotonic() - self._submitted < WAIT_S:
            return
        reasons = [reason.replace("_", " ") for reason in reasons]
        most = Counter(reasons).most_common(1)[0][0]
        if all(reason in STUCK for reason in reasons):
            raise UserError(f"no job of {self._title} can start, since Slurm says {most}; {STUCK[most]}, and run again")
        if not self._told_that_jobs_wait:
            print(f"{self._title}: {len(reasons):,} jobs wait: {most}", file=sys.stderr)
        self._told_that_jobs_wait = True

    def _read_claims(self) -> None:
        for number in self._queue.claimed() & self._waiting.keys() - self._workers_of.keys():
            worker = self._queue.worker_of(number)
            if worker is not None:
                self._workers_of[number] = worker
        self._workers_of = {n: worker for n, worker in self._workers_of.items() if n in self._waiting}

    def _lives(self) -> dict[str, int]:
        """How often each job has been put back into the queue and begun again."""
        lives: dict[str, int] = {}
        for worker in self._queue.started():
            job, _, restarts = worker.partition(".")
            lives[job] = max(lives.get(job, 0), int(restarts))
        return lives

    def _release(self, number: int, worker: str) -> None:
        self._ended[number] += 1
        if self._ended[number] >= ATTEMPTS:
            job = worker.partition(".")[0]
            raise UserError(
                f"{ATTEMPTS} jobs of {self._title} ended while they worked on task {number}, the last of them {job}; "
                f"see {self._jobs.logs / f'{job}.log'}: memory (mem=) or time (time=) may be too short for it"
            )
        del self._workers_of[number]
        self._queue.release(number)

    def _keep_jobs(self, jobs: int, unclaimed: int) -> None:
        """Replace jobs that are gone while there are tasks to take; `jobs` wait or run."""
        wanted = min(self._workers - jobs, unclaimed)
        if wanted <= 0 or (jobs and time.monotonic() - self._submitted < MORE_JOBS_S):
            return
        if not jobs:
            self._fruitless = self._fruitless + 1 if len(self._waiting) == self._left_when_submitted else 0
            if self._fruitless >= ATTEMPTS:
                raise UserError(
                    f"{ATTEMPTS} job arrays of {self._title} in a row ended without finishing one of the "
                    f"{len(self._waiting)} tasks that are left; the last said: {self._jobs.last_words()}; "
                    f"see {self._jobs.logs} and run again"
                )
            self._left_when_submitted = len(self._waiting)
        self._submitted = time.monotonic()
        try:
            self._jobs.submit(wanted)
        except UserError:
            if not jobs:
                raise


def _works(worker: str, states: dict[str, str], lives: dict[str, int]) -> bool:
    job, _, restarts = worker.partition(".")
    return states.get(job, "").partition(" ")[0] in WITH_PROCESSES and int(restarts) == lives.get(job, 0)


def _answer(words: Sequence[str], script: str | None = None) -> subprocess.CompletedProcess[str] | None:
    """What a command of Slurm has said; None where it hangs."""
    try:
        return subprocess.run(
            words, input=script, env=_environment(), capture_output=True, text=True, check=False, timeout=ANSWER_S
        )
    except subprocess.TimeoutExpired:
        return None


def _environment() -> dict[str, str]:
    """Ours, with the project on its path; without what Slurm has set for a job in which the driver may run itself, and
    without what a user has set that hides jobs from the driver or has it wait for them.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED) or k == "SLURM_CONF"}
    root = str(Path(__file__).resolve().parents[2])
    return {**ours, "PYTHONPATH": os.pathsep.join([root, *filter(None, [ours.get("PYTHONPATH")])])}
