"""Supervised runs under faults, and what is reported of them for docs/reliability.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipe.base.files import append_json, read_json_lines
from recipe.run.records import read_metrics
from tests.conftest import CPU, ROOT, RunFiles, ds_config, launch, made_once, schedule_of, start_forked, write_run
from tests.patience import PATIENCE_S
from tests.rank_server import Launched

STEPS = 12
SCHEDULE = schedule_of(STEPS)
SECTIONS = {
    "schedule": SCHEDULE,
    "checkpoint": {"every_steps": 2, "keep_last": 3},
    "watch": {"no_progress_s": 6, "heartbeat_s": 1},
}


@dataclass
class Supervised:
    """A run under the supervisor."""

    run: RunFiles
    process: subprocess.Popen | Launched
    log: Path | None = None  # of a real launch; a forked one has its own

    @property
    def run_dir(self) -> Path:
        return self.run.run_dir

    def over(self) -> bool:
        return self.process.poll() is not None or bool(self.events("finished"))

    def wait(self, timeout: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        if isinstance(self.process, Launched):
            return "".join(self.process.output())
        assert self.log is not None
        return self.log.read_text(errors="replace")

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        found = read_json_lines(self.run_dir / "events.jsonl")
        return [event for event in found if kind in (None, event["event"])]

    def losses(self) -> dict[int, float]:
        return {m["step"]: m["loss"] for m in read_metrics(self.run_dir)}

    def until(self, happened: Callable[[], Any], timeout: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output[-3000:]}"
            assert time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.02)

    def until_step(self, step: int) -> None:
        self.until(lambda: (self.run_dir / "metrics.jsonl").exists() and max(self.losses(), default=0) >= step)

    def finished(self) -> dict[int, float]:
        """The losses, once the run has ended well."""
        code = self.wait()
        assert code == 0, self.output[-4000:]
        assert self.events("finished")
        return self.losses()


@pytest.fixture
def supervise(new_run, small_model, write_ds, tmp_path):
    """A function that starts a small run under the supervisor, with faults; 2 ranks, 12 steps, a checkpoint every 2.

    Its ranks are forked, and so is the supervisor, unless `real`: then both are started by launch/train.sh and the launcher.
    """
    started: list[Supervised] = []

    def start(
        name: str, faults: list[dict[str, Any]] | None = None, *, words: tuple[object, ...] = (), ds: Path | None = None,
        run: RunFiles | None = None, real: bool = False, **sections: Any,
    ) -> Supervised:  # fmt: skip
        run = run or new_run(name, **{"model": str(small_model), **SECTIONS, **sections})
        ds = ds or write_ds(2, micro_batch=4, accumulation=1, autoep_size=2)
        log = tmp_path / f"{name}_{len(started)}.log"
        arguments = ["--num_gpus", 2, *run.arguments(ds), "--backoff", 0, "--max-stalls", 9, *words, "--", "--quiet"]
        environment = {"RECIPE_FAULTS": json.dumps(faults)} if faults else {}
        if not real:
            process = start_forked("tests/faults/forked_supervisor.py", *arguments, env=environment)
            started.append(Supervised(run, process))
            return started[-1]
        with open(log, "w") as handle:
            process = subprocess.Popen(
                ["launch/train.sh", *map(str, arguments)],
                cwd=ROOT, env={**CPU, **environment}, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(Supervised(run, process, log))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def undisturbed(prepared, small_model, tmp_path_factory) -> dict[int, float]:
    """The losses of the same run without a fault, by step."""

    def train(folder: Path) -> None:
        run, ds = write_run(folder, "run", prepared, model=str(small_model), **SECTIONS), folder / "ds.json"
        ds.write_text(json.dumps(ds_config(2, micro_batch=4, accumulation=1, autoep_size=2)))
        done = launch(2, "recipe/train.py", *run.arguments(ds))
        assert done.returncode == 0, done.stderr[-3000:]

    run_dir = made_once(tmp_path_factory, "undisturbed", train) / "run"
    losses = {m["step"]: m["loss"] for m in read_metrics(run_dir)}
    assert sorted(losses) == list(range(1, STEPS + 1))
    return losses


def report(fault: str, detected: str, *, seconds: float | None, lost_steps: int | None, then: str) -> None:
    """Add a row to the table of docs/reliability.md, if FAULTS_REPORT names a file for it."""
    if path := os.environ.get("FAULTS_REPORT"):
        row = {"fault": fault, "detected": detected, "seconds": seconds, "lost_steps": lost_steps, "then": then}
        append_json(Path(path), row)


def seconds_to_notice(supervised: Supervised, attempt: int) -> float:
    """From the last sign of training of an attempt to the record of its end, seconds."""
    (end,) = (e for e in supervised.events("attempt_ended") if e["attempt"] == attempt)
    signs = [
        e["time"] for e in supervised.events() if e["attempt"] == attempt and e is not end and e["time"] < end["time"]
    ]
    lines = (json.loads(line) for line in (supervised.run_dir / "metrics.jsonl").read_text().splitlines())
    signs += [m["time"] for m in lines if m["time"] < end["time"]]
    return end["time"] - max(signs)
