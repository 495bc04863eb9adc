"""Functions that jobs of a real Slurm run in the tests of the engine; with few imports, since each job makes them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any


def my_time_limit(task: Any, number: int) -> dict[str, Any]:
    words = ["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%l"]
    return {"limit": subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()}


def cancelled_once(task: Path, number: int) -> dict[str, Any]:
    """The job that has the task is cancelled in its middle, where none was before."""
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if number == 0 and not task.exists():
        task.write_text(job)
        subprocess.run(["scancel", job], check=True)
        time.sleep(60)
    return {"job": job, "number": number}
