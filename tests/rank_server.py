"""Starts the ranks of a script as forks of one process that has imported torch, DeepSpeed and the recipe already.

What a launch costs is imports, a dozen CPU-seconds a rank. The forked ranks are what the launcher would have started: real
processes with the launcher's environment, a real process group, the script run as `__main__`; when one fails, the others are
ended. The launcher itself is not there: what is about it, its hosts or its signals is tested with it.

Run as a module it reads one request a line and answers with the exit code; `RankServer` is its client.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OTHERS_SPEAK_S = 1.0  # that the other ranks get when one has failed, as under the launcher


class RankServer:
    """A server in its own process group; started when first used."""

    def __init__(self, env: dict[str, str]):
        self._env = env
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        self._requests = itertools.count()

    def launch(
        self, ranks: int, script: object, *arguments: object, port: int, env: dict[str, str] | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a script on so many ranks; the exit code is that of the first that failed, output that of all.

        Raises:
            subprocess.TimeoutExpired: the ranks and the server are ended then.
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
        if not select.select([process.stdout], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(words, timeout, *self._read(output))
        return subprocess.CompletedProcess(words, int(process.stdout.readline()), *self._read(output))

    def close(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.rank_server"], cwd=ROOT, env=self._env, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        return self._process

    @staticmethod
    def _read(output: Path) -> tuple[str, str]:
        texts = (Path(f"{output}{suffix}") for suffix in (".out", ".err"))
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in texts)
        return stdout, stderr


def main() -> None:
    """Serve until standard input ends."""
    import deepspeed  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401
    import transformers  # noqa: F401

    from recipe.checkpoints import export, restore  # noqa: F401
    from recipe.engine import session  # noqa: F401
    from recipe.evaluation import downstream  # noqa: F401
    from recipe.huggingface import import_weights  # noqa: F401
    from recipe.telemetry import prometheus  # noqa: F401
    from recipe.training import start as attempt  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)


def run(request: dict[str, Any]) -> int:
    """Fork the ranks and wait for them; the exit code of the first that failed."""
    left = {fork(request, rank): rank for rank in range(request["ranks"])}
    code, deadline = 0, None
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in left:
            del left[pid]
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code, deadline = ended, time.monotonic() + OTHERS_SPEAK_S
        elif deadline is not None and time.monotonic() > deadline:
            for other in left:
                os.kill(other, signal.SIGKILL)
            deadline = None
        else:
            time.sleep(0.01)
    return code


def fork(request: dict[str, Any], rank: int) -> int:
    """One rank; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for stream, name in ((0, os.devnull), (1, f"{request['output']}.out"), (2, f"{request['output']}.err")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), stream)
        os.environ.update(request["env"])
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(request["ranks"]), LOCAL_SIZE=str(request["ranks"]),
            CROSS_RANK="0", CROSS_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]),
        )  # fmt: skip
        os.chdir(ROOT)
        script = request["script"]
        sys.argv = [script, f"--local_rank={rank}", *request["arguments"]]
        sys.path[:1] = [str((ROOT / script).parent), str(ROOT)]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
