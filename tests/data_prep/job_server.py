"""Runs data jobs as forks of one process that has imported them already, and kills them at moments that are chosen.

What a job on a small corpus costs is imports. A forked job is what a shell would have started: a process of its own group with
the script as `__main__`, its own output, environment and exit code. That each script also starts by itself is what
`test_help_shows_an_example` is for.

Run as a module it reads one request a line and answers with the exit code; `run_job` is its client.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import itertools
import json
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.conftest import CPU, ROOT
from tests.patience import PATIENCE_S

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: workers of a killed job become children of the server
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.symlink")  # audit events, each raised before the system call
WRITER = re.compile(r"\.[^./]+-\d+\.partial$")  # host and process in the name of a file that is being written


@dataclass(frozen=True)
class Kill:
    """When a job is killed with all its workers, by SIGKILL.

    Args:
        after_cpu_s: when it has computed so long, which does not depend on what else the machine does. For one worker.
        before_changes_to: before the first change to this folder that no job before it has come to. Changes are names that
            appear, and the first two that go from a folder. A job that is run again and again dies once before each.
        come_to: where those changes are listed.
    """

    after_cpu_s: float = 0
    before_changes_to: Path | None = None
    come_to: Path | None = None


class JobResult(subprocess.CompletedProcess[str]):
    """What a job printed, its exit code, and the seconds that it computed."""

    def __init__(self, words: list[str], code: int, stdout: str, stderr: str, cpu_s: float):
        super().__init__(words, code, stdout, stderr)
        self.cpu_s = cpu_s


class JobServer:
    """A server in its own process group; started when first used."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="jobs")
        self._requests = itertools.count()

    def run(
        self, *words: object, env: dict[str, str] | None = None, kill: Kill | None = None, timeout: float = PATIENCE_S
    ) -> JobResult:
        process, output = self._started(), Path(self._folder.name) / str(next(self._requests))
        kill = kill or Kill()
        request = {
            "words": [str(word) for word in words],
            "env": env or {},
            "output": str(output),
            "after_cpu_s": kill.after_cpu_s,
            "folder": str(kill.before_changes_to) if kill.before_changes_to else None,
            "come_to": str(kill.come_to),
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(request["words"], timeout)
        code, cpu_s = process.stdout.readline().split()
        texts = [Path(f"{output}{suffix}").read_text(errors="replace") for suffix in (".out", ".err")]
        return JobResult(request["words"], int(code), *texts, cpu_s=float(cpu_s))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.data_prep.job_server"], cwd=ROOT, env=CPU, text=True,
                start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        return self._process


_server = JobServer()
atexit.register(_server.close)


def run_job(script: object, *words: object, **options: Any) -> JobResult:
    """Run a script of `data_prep` in the project's folder; output captured, exit code not checked.

    Its pool of workers is forked too. That workers are spawned in earnest is for the tests of the engines.
    """
    return _server.run(script, *words, **options)


def main() -> None:
    """Serve until standard input ends."""
    from data_prep import (  # noqa: F401
        curate,
        decontaminate,
        dedup,
        evaluate_tokenizer,
        import_shards,
        ingest,
        mix,
        pack_sequences,
        report,
        tokenize_corpus,
        train_tokenizer,
    )

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.freeze()  # what was imported is not looked at in each fork, which would copy it
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become_job(request)
        print(*wait_for_job(pid), flush=True)


def wait_for_job(pid: int) -> tuple[int, float]:
    """The exit code of a job and its seconds of CPU. Its workers, who share its lock, have ended then too."""
    _, status, usage = os.wait4(pid, 0)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def become_job(request: dict[str, Any]) -> None:
    """In a fork: be the process that a shell would have started."""
    os.setsid()
    for descriptor, name in enumerate((os.devnull, f"{request['output']}.out", f"{request['output']}.err")):
        file = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(request["env"])
    script, *sys.argv[1:] = request["words"]
    sys.argv[0] = script
    sys.path.insert(0, str(ROOT / Path(script).parent))
    fork_workers()
    if request["folder"]:
        sys.addaudithook(KilledBeforeChanges(Path(request["folder"]), Path(request["come_to"])))
    signal.setitimer(signal.ITIMER_PROF, request["after_cpu_s"])  # SIGPROF ends a process that does not handle it
    os._exit(exit_code_of(script))


def exit_code_of(script: str) -> int:
    """Run a script to the end of its threads and of what it has left to do at its exit, as Python does.

    Not with Python's own end: that touches all that was imported, each page of which is copied then.
    """
    code: Any = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(OSError):  # a pool's thread may close its pipe just now, which Python's own end passes over too
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


def fork_workers() -> None:
    from data_prep.core import engines

    engines.get_context = lambda method: get_context("fork")  # type: ignore[attr-defined]


class KilledBeforeChanges:
    """An audit hook that kills the process group before the first change to a folder that is not listed as come to."""

    def __init__(self, folder: Path, come_to: Path):
        self._folder, self._come_to = str(folder), come_to
        self._known = set(come_to.read_text().splitlines()) if come_to.exists() else set()
        self._gone: Counter[str] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        path = path_of(event, arguments)
        if not path.startswith(self._folder + os.sep):
            return
        name = WRITER.sub("", path[len(self._folder) :])
        if event in ("os.remove", "os.rmdir"):
            parent = os.path.dirname(name)
            name = f"{parent} {min(self._gone[parent], 2)}"
            self._gone[parent] += 1
            if name.endswith(" 2"):
                return
        change = f"{event} {name}"
        if change in self._known:
            return
        with open(self._come_to, "a") as handle:
            handle.write(change + "\n")
        os.killpg(0, signal.SIGKILL)


def path_of(event: str, arguments: tuple[Any, ...]) -> str:
    """The name that appears or goes. Those in a folder that is open, as `rmtree` has them, are relative to it."""
    appears = event in ("os.rename", "os.symlink")
    path, folder = os.fsdecode(arguments[1] if appears else arguments[0]), arguments[-1]
    return path if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)


if __name__ == "__main__":
    main()
