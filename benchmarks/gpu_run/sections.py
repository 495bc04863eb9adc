"""The sections of `benchmarks/gpu.py`: is it right, how fast is it, where is the plan wrong. What each finds is written at once."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_run.child import TIME_IS_OVER, Ended, last_line, run_child
from benchmarks.gpu_run.result import FACTS, Result
from benchmarks.gpu_run.tables import check_line, contender_line, kernel_line, kernel_name
from recipe.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# What the children are; files, limits and checks are put behind.
COMMANDS: dict[str, list[str]] = {
    "facts": [sys.executable, "benchmarks/gpu_run/machine.py"],
    # What a check prints goes to the log at once, with where it was after a minute: its process may not come to its end.
    "right": [sys.executable, "-m", "pytest", "-c", "setup.cfg", "-m", "gpu", "-s", "-o", "addopts=-ra", "-o", "faulthandler_timeout=60",
              "-p", "no:cacheprovider", "--continue-on-collection-errors"],
    "kernels": [sys.executable, "benchmarks/kernel_times.py"],
    "train_step": [sys.executable, "benchmarks/train_step.py"],
}  # fmt: skip
CHECKS = "tests/gpu"
# Of the whole time. On an H200 the imports of a process take half a minute and a first compiled step of 8 layers one minute:
# of ten minutes 240 s are for the checks, 90 s for kernels, and the rest for contenders, each in a process of its own.
SHARES = {"right": 0.40, "kernels": 0.15}
RESERVE_S = 10.0  # for the calibration and the tables
MARGIN_S = 5.0  # between the time that train_step.py plans with and its end
LEAST_S = 20.0  # a process that has less does not come to measure
# How benchmarks/kernel_times.py says that a kernel has broken the GPU for its process: exit code, and lines of all that follow.
GPU_LOST, AFTER_A_LOSS = 70, "not measured: the GPU"
CHECK_SHARE = 0.5  # of the checks' time: a check that takes longer hangs


@dataclass
class Run:
    """One start of the command: what it finds, and until when.

    Attributes:
        env: of the children.
        ends_s: when the time is over, by `time.monotonic`.
        say: prints a line of progress.
        failed: whether something went wrong, other than that there was not enough time.
    """

    result: Result
    env: dict[str, str]
    small: bool
    budget_s: float
    ends_s: float
    say: Callable[[str], None]
    failed: bool = False
    section: str = ""

    def note(self, sentence: str) -> None:
        """Something is missing in the result."""
        self.result.values["unfinished"].append(sentence)
        self.result.write()
        self.say(sentence)

    def problem(self, sentence: str) -> None:
        """Something is missing in the result because it went wrong."""
        self.failed = True
        self.note(sentence)

    def left_s(self) -> float:
        return self.ends_s - time.monotonic()

    def limit_s(self, section: str, last: bool) -> float:
        """What a section may take: its share, or for the last one all that is left."""
        left = self.left_s() - RESERVE_S
        return left if last else min(left, SHARES[section] * self.budget_s)

    def child(self, section: str, words: list[str], limit_s: float, poll: Callable[[], str | None]) -> Ended:
        log = self.log(section)
        return run_child([*COMMANDS[section], *words], env=self.env, cwd=ROOT, log=log, limit_s=limit_s, poll=poll)

    def log(self, section: str) -> Path:
        return self.result.folder / f"{section}.log"


@dataclass
class Lines:
    """A file of JSON lines that a child is writing."""

    path: Path
    read: int = 0

    def new(self) -> list[dict[str, Any]]:
        from recipe.base.files import read_json_lines

        lines = read_json_lines(self.path)[self.read :]
        self.read += len(lines)
        return lines


@dataclass
class Checks:
    """What the checks have come to, from the lines that tests/gpu/conftest.py writes."""

    run: Run
    lines: Lines
    limit_s: float  # of one check
    names: list[str] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    current: dict[str, Any] | None = None
    since_s: float = 0.0

    def poll(self) -> str | None:
        for line in self.lines.new():
            if "checks" in line:
                self.names = self.names or line["checks"]
            elif line["outcome"] == "started":
                self.current, self.since_s = line, time.monotonic()
            else:
                self.add(line)
        if self.current is not None and time.monotonic() - self.since_s > self.limit_s:
            return f"a check had no result after {self.limit_s:.0f} s"
        return None

    def add(self, line: dict[str, Any]) -> None:
        self.current = None
        self.done[line["check"]] = line
        self.run.failed |= line["outcome"] == "failed"
        self.run.result.values["right"] = list(self.done.values())
        self.run.result.write()
        self.run.say(check_line(line))

    def end_current(self, ended: Ended) -> None:
        """A check whose process has ended in it has failed; if only because the time was over, nobody knows."""
        if self.current is None:
            return
        over = ended.reason == TIME_IS_OVER
        why = ended.reason if over else f"the process of the check: {ended.how}; {last_line(self.run.log('right'))}"
        self.add({"check": self.current["check"], "what": self.current.get("what", self.current["check"]),
                  "outcome": "not done" if over else "failed", "seconds": round(time.monotonic() - self.since_s, 2),
                  "measured": {}, "why": why})  # fmt: skip

    def left(self) -> list[str]:
        return [name for name in self.names if name not in self.done]


def right(run: Run, limit_s: float) -> None:
    """The checks. Where a process ends in one of them, another process makes those that are left."""
    report = run.result.folder / "right.jsonl"
    checks = Checks(run, Lines(report), limit_s * CHECK_SHARE)
    ends_s, words = time.monotonic() + limit_s, [CHECKS]
    while True:
        before = len(checks.done)
        ended = run.child("right", [f"--report={report}", *words], ends_s - time.monotonic(), checks.poll)
        in_a_check = checks.current is not None
        checks.end_current(ended)
        words = checks.left()
        if ended.reason == TIME_IS_OVER:
            break
        if not checks.names:
            run.problem(f"checks: none was made, {ended.how}; {last_line(run.log('right'))}")
            return
        if ended.code < 0 and ended.reason is None and not in_a_check:
            run.problem(f"checks: their process was {ended.how} after {next(reversed(checks.done), 'its start')}")
        if not words or len(checks.done) == before:
            break
        run.say(f"checks: the process has ended ({ended.how}); another one makes the {len(words)} that are left")
    if words:
        reason = f"the {limit_s:.0f} s for checks were over" if ended.reason == TIME_IS_OVER else ended.how
        run.problem(f"checks not made, since {reason}: {', '.join(words)}")
    undone = [check for check, line in checks.done.items() if line["outcome"] == "not done"]
    if undone or (not checks.names and ended.reason == TIME_IS_OVER):
        run.problem(f"checks not done within {limit_s:.0f} s: {', '.join(undone) or 'all'}")


def kernels(run: Run, limit_s: float) -> None:
    """Kernels, each for itself. Where one leaves a GPU that takes no more work, another process measures those behind it."""
    found, ends_s = run.result.values["kernels"], time.monotonic() + limit_s
    while True:
        begun_with, lines = len(found), Lines(run.result.folder / f"kernels_{len(found)}.jsonl")

        def poll(lines: Lines = lines) -> None:
            for line in lines.new():
                if not (line.get("failed") or "").startswith(AFTER_A_LOSS):
                    found.append(line)
                    run.result.write()
                    run.say(kernel_line(line))

        words = ["--output", str(lines.path), "--after", str(begun_with), *(["--small"] if run.small else [])]
        ended = run.child("kernels", words, ends_s - time.monotonic(), poll)
        if ended.code != GPU_LOST or len(found) == begun_with:
            break
        run.problem(
            f"kernels: the GPU took no more work after {kernel_name(found[-1])}; another process measures what follows"
        )
    _tell_end(run, "kernels", ended, limit_s)
    for line in run.result.values["kernels"]:
        if line.get("failed") and not line["failed"].startswith("not possible here"):
            run.note(f"kernels: {kernel_name(line)}: {line['failed']}")


def train_step(run: Run, limit_s: float) -> None:
    """Whole training steps of this recipe and of others."""
    path, shown = run.result.folder / "train_step.json", set()

    def poll() -> None:
        measured = _read_json(path)
        if measured is None or measured == run.result.values["train_step"]:
            return
        run.result.values["train_step"] = measured
        run.result.write()
        slice_ = {"the flagship's slice": measured["flagship"]} if "flagship" in measured else {}
        for name, contender in {**measured["contenders"], **slice_}.items():
            if name not in shown:
                run.say(contender_line(name, contender))
                shown.add(name)

    words = ["--output", str(path), "--seconds", str(int(limit_s - MARGIN_S))]
    _tell_end(run, "train_step", run.child("train_step", words, limit_s, poll), limit_s)
    for sentence in (run.result.values["train_step"] or {}).get("unfinished", ()):
        run.note(f"train_step: {sentence}")


def _tell_end(run: Run, section: str, ended: Ended, limit_s: float) -> None:
    if ended.reason == TIME_IS_OVER:
        run.note(f"{section}: not all of it is measured, {limit_s:.0f} s were left for it")
    elif ended.code:
        run.problem(f"{section}: not all of it is measured, {ended.how}; {last_line(run.log(section))}")


def _read_json(path: Path) -> dict[str, Any] | None:
    """None while there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def calibrated(run: Run) -> None:
    """The planner's constants of this GPU, from what was measured: a file for `plan.py --calibration`."""
    from benchmarks.calibration import calibrated, file_of

    values = run.result.values
    values["unfinished"] = [sentence for sentence in values["unfinished"] if not sentence.startswith("calibration: ")]
    if not values["kernels"] and values["train_step"] is None:
        run.note("calibration: not made, since no kernel and no step was measured")
        return
    try:
        calibration = calibrated(values["kernels"], values["train_step"], {key: values[key] for key in FACTS})
        content = file_of(calibration)
    except UserError as error:
        run.problem(f"calibration: not made, {error}")
        return
    values["calibration"] = calibration
    run.result.write()
    if content is not None:
        run.result.write_calibration(content)
    elif run.small:
        run.say("calibration: no file, since the planner has no CPU")
    else:
        run.note(f"calibration: no file, since no constant could be derived: {'; '.join(calibration['notes'])}")


PROCESSES: dict[str, dict[str, Callable[[Run, float], None]]] = {
    "right": {"right": right},
    "fast": {"kernels": kernels, "train_step": train_step},
    "calibrated": {},
}


def measure(run: Run, sections: list[str]) -> None:
    """The sections in the order of their worth. What is missing at the end is named in the result.

    Raises:
        KeyboardInterrupt: ctrl-C or a signal; what was found until then is written.
    """
    queue = [(name, make) for section in sections for name, make in PROCESSES[section].items()]
    try:
        for at, (name, make) in enumerate(queue):
            run.section = name
            _timed(run, name, make, last=at == len(queue) - 1)
        if "calibrated" in sections:
            run.section = "calibration"
            with _going_on(run, "calibration"):
                calibrated(run)
    except KeyboardInterrupt:
        run.note(f"interrupted in {run.section}: what follows is not measured")
        raise


@contextmanager
def _going_on(run: Run, name: str) -> Iterator[None]:
    """What goes wrong in this process must not cost what follows: minutes of a GPU may not come again."""
    try:
        yield
    except Exception as error:
        with open(run.log(name), "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        run.problem(f"{name}: ended by {type(error).__name__}: {error}; see {run.log(name)}")


def _timed(run: Run, name: str, make: Callable[[Run, float], None], last: bool) -> None:
    limit_s, began_s = run.limit_s(name, last), time.monotonic()
    if limit_s < LEAST_S:
        tell = run.problem if name == "right" else run.note
        tell(f"{name}: not measured, {max(0, limit_s):.0f} s were left for it")
        return
    run.say(f"{name}: at most {limit_s:.0f} s; its output goes to {run.log(name)}")
    try:
        with _going_on(run, name):
            make(run, limit_s)
    finally:
        run.result.values["spent_s"][name] = round(time.monotonic() - began_s, 1)
        run.result.write()
