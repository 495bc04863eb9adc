"""Starts scripts and the ranks of scripts as forks of one process that has imported torch, DeepSpeed and the recipe already.

What a launch costs is imports, a dozen CPU-seconds a rank. The forked ranks are what the launcher would have started: real
processes with the launcher's environment, a real process group, the script run as `__main__`; when one fails, the others are
ended. The launcher itself is not there: what is about it, its hosts or its signals is tested with it.

Run as a module it reads one request a line and answers with the process that runs it; `RankServer` is its client.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from recipe.base.ranks import STOP_SIGNALS

ROOT = Path(__file__).resolve().parent.parent
OTHERS_SPEAK_S = 1.0  # that the other ranks get when one has failed, as under the launcher
OTHERS_SAVE_S = 30.0  # that they get then where they are asked to stop first, as under the launcher
POLL_S = 0.01


class Launched:
    """Processes of a request: a leader that stands for the launcher, and the ranks in its session and process group."""

    def __init__(self, words: list[str], pid: int, output: Path):
        self.args, self.pid, self.returncode, self._output = words, pid, None, output
        self.returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None:
            is_gone = not Path(f"/proc/{self.pid}").exists()  # looked at first: the code is written before the end
            with suppress(FileNotFoundError):
                self.returncode = int(Path(f"{self._output}.code").read_text())
            if self.returncode is None and is_gone:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: they are ended then.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.end()
                raise subprocess.TimeoutExpired(self.args, timeout, *self.output())
            time.sleep(POLL_S)
        assert self.returncode is not None
        return self.returncode

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """To the leader alone."""
        os.kill(self.pid, number)

    def output(self) -> tuple[str, str]:
        """Standard output and standard error of all ranks so far."""
        texts = (Path(f"{self._output}{suffix}") for suffix in (".out", ".err"))
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in texts)
        return stdout, stderr

    def completed(self, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(self.args, self.wait(timeout), *self.output())


class RankServer:
    """A server in its own process group; started when first used."""

    def __init__(self, env: dict[str, str]):
        self._env = env
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        self._requests = itertools.count()
        self._launched: list[Launched] = []

    def start(
        self, ranks: int, script: object, *arguments: object, port: int, env: dict[str, str] | None = None
    ) -> Launched:
        """Start a script on so many ranks; on 0 as it is run without the launcher.

        The exit code is that of the first rank that failed, output that of all.
        """
        process, words = self._started(), [str(script), *map(str, arguments)]
        output = Path(self._folder.name) / str(next(self._requests))
        request = {
            "ranks": ranks,
            "script": words[0],
            "arguments": words[1:],
            "env": env or {},
            "output": str(output),
            "port": port,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        self._launched = [launched for launched in self._launched if launched.poll() is None]
        self._launched.append(Launched(words, int(process.stdout.readline()), output))
        return self._launched[-1]

    def close(self) -> None:
        for launched in self._launched:
            if launched.poll() is None:
                launched.end()
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.rank_server"], cwd=ROOT, env=self._env, text=True,
                start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        return self._process


def main() -> None:
    """Serve until standard input ends."""
    import deepspeed
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  with torch._inductor, at the first engine
    import safetensors.torch  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401
    import transformers  # noqa: F401

    from launch import rehearse, reshard, supervise  # noqa: F401
    from recipe.checkpoints import export, restore, universal  # noqa: F401
    from recipe.engine import rehearsal, session  # noqa: F401
    from recipe.evaluation import downstream  # noqa: F401
    from recipe.huggingface import import_weights  # noqa: F401
    from recipe.telemetry import prometheus  # noqa: F401
    from recipe.training import start as attempt  # noqa: F401

    gc.collect()
    gc.freeze()  # an engine collects garbage four times, and would look through all of the above
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the leaders
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            lead(request)
        print(pid, flush=True)


def lead(request: dict[str, Any]) -> NoReturn:
    """Run a request in a session of its own and leave its exit code."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    redirect(request["output"])
    os.environ.update(request["env"])
    code = run_ranks(request) if request["ranks"] else run_alone(request)
    temporary = Path(f"{request['output']}.code_")
    temporary.write_text(str(code))
    temporary.rename(f"{request['output']}.code")
    os._exit(0)


def run_alone(request: dict[str, Any]) -> int:
    """Run a script without the launcher's environment; signals to the leader are the script's."""
    pid = fork(request, {})
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    return wait_for({pid: 0})


def redirect(output: str) -> None:
    for stream, name in ((0, os.devnull), (1, f"{output}.out"), (2, f"{output}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), stream)


def run_ranks(request: dict[str, Any], *, asks_to_stop: bool = False) -> int:
    """Fork the ranks and wait for them; the exit code of the first that failed."""
    ranks = request["ranks"]
    of_all = {
        "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "CROSS_RANK": 0, "CROSS_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": request["port"],
    }  # fmt: skip
    pids = {fork(request, {"RANK": rank, "LOCAL_RANK": rank, **of_all}): rank for rank in range(ranks)}
    return wait_for(pids, asks_to_stop=asks_to_stop)


def wait_for(pids: dict[int, int], *, asks_to_stop: bool = False) -> int:
    """The exit code of the first that failed, when all have ended; the others are ended then, asked to stop before if need be."""
    left, code, deadline = dict(pids), 0, None
    numbers = [(signal.SIGTERM, OTHERS_SAVE_S)] if asks_to_stop else []
    numbers.append((signal.SIGKILL, 0.0))
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in left:
            del left[pid]
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code, deadline = ended, time.monotonic() + OTHERS_SPEAK_S
        elif deadline is not None and numbers and time.monotonic() > deadline:
            number, patience_s = numbers.pop(0)
            for other in left:
                os.kill(other, number)
            deadline = time.monotonic() + patience_s
        else:
            time.sleep(POLL_S)
    return code


def fork(request: dict[str, Any], environment: dict[str, object]) -> int:
    """One process of a script, a rank if the environment says so; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        os.chdir(ROOT)
        script = request["script"]
        of_rank = [f"--local_rank={environment['LOCAL_RANK']}"] if environment else []
        sys.argv = [script, *of_rank, *request["arguments"]]
        sys.path[:1] = [str((ROOT / script).parent), str(ROOT)]
        runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
