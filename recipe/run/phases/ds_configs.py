"""The ds_configs of a run's phases, written to its folder for people and other tools to read."""

from __future__ import annotations

from pathlib import Path

from recipe.base.files import write_json
from recipe.run.job import Job

FOLDER = "ds_configs"


def ds_config_path(job: Job) -> Path:
    """Where the ds_config of the job's phase is written."""
    return job.run.run_dir / FOLDER / f"{job.number}_{job.phase.name}.json"


def write_ds_configs(job: Job) -> None:
    """Write that of each phase, by rank 0; a run without phases has its own file alone."""
    for phase in job.phases if job.config.phases else ():
        path = ds_config_path(job.at(phase.number))
        path.parent.mkdir(exist_ok=True)
        write_json(path, phase.ds_raw)
