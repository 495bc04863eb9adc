"""What each job of `--engine slurm` runs: tasks of a queue, one after the other, until none is left.

python -m data_prep.core.slurm_worker QUEUE
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.core.outcome import outcome_of
from data_prep.core.task_queue import TaskQueue


def worker_name(environment: Mapping[str, str]) -> str:
    """JOB_INDEX.RESTARTS: this job of the array, and how often Slurm has put it back into its queue."""
    job, index = environment["SLURM_ARRAY_JOB_ID"], environment["SLURM_ARRAY_TASK_ID"]
    return f"{job}_{index}.{environment.get('SLURM_RESTART_COUNT', '0')}"


def claims(queue: TaskQueue, numbers: Sequence[int], worker: str, index: int, jobs: int) -> Iterator[int]:
    """Take tasks: first a share of this job's own, where no other is in the way, then what is left of all."""
    own: set[int] = set()
    for number in numbers[index::jobs]:
        if queue.claim(number, worker):
            own.add(number)
            yield number
    choose = random.Random(worker)
    while queue.is_open():
        queue.refresh(worker)
        taken = queue.claimed() | own
        left = [number for number in numbers if number not in taken]
        if not left:
            return
        choose.shuffle(left)
        for number in left:
            if not queue.claim(number, worker):  # others are at it: look again what is left
                break
            own.add(number)
            yield number


def work(queue: TaskQueue, worker: str, index: int, jobs: int) -> None:
    """Run tasks until none is left, or the driver has closed the queue."""
    try:
        queue.start(worker)
        function, tasks = queue.load()
        by_number = dict(tasks)
        for number in claims(queue, sorted(by_number), worker, index, jobs):
            print(f"task {number}", flush=True)
            queue.put(number, outcome_of(function, by_number[number], number), worker)
    except FileNotFoundError:
        if queue.is_open():
            raise


def main() -> None:
    environment = os.environ
    index, jobs = int(environment["SLURM_ARRAY_TASK_ID"]), int(environment["SLURM_ARRAY_TASK_COUNT"])
    work(TaskQueue(Path(sys.argv[1])), worker_name(environment), index, jobs)


if __name__ == "__main__":
    main()
