"""launch/supervise.py, of which the launches on this host are forks instead of the deepspeed launcher's processes.

Run by `tests.conftest.start_forked`, whose process has imported what ranks need. As the launcher does, a forked one leads the
process group of its ranks, asks the others to stop when one has failed, and ends with that one's exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from deepspeed.launcher.runner import parse_args

from launch import supervise
from launch.cluster.hosts import deepspeed_launcher
from recipe.base.ranks import STOP_SIGNALS
from tests.rank_server import POLL_S, run_ranks


class ForkedLauncher:
    """What the supervisor asks of a Popen."""

    def __init__(self, words: list[str]):
        args = parse_args(words[1:])
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            close_files()
            request = {
                "ranks": args.num_gpus, "script": args.user_script, "arguments": args.user_args, "port": args.master_port,
            }  # fmt: skip
            os._exit(run_ranks(request, asks_to_stop=True) & 0xFF)

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked ranks", timeout)
            time.sleep(POLL_S)


def close_files() -> None:
    """The supervisor's, of which one is the lock that says that it lives."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number > 2:
            with suppress(OSError):  # the listing's own
                os.close(number)


def popen(words: list[str], **options: Any) -> ForkedLauncher | subprocess.Popen[bytes]:
    return ForkedLauncher(words) if words[0] == deepspeed_launcher() else subprocess.Popen(words, **options)


if __name__ == "__main__":
    supervise.subprocess = SimpleNamespace(Popen=popen, TimeoutExpired=subprocess.TimeoutExpired)  # type: ignore[assignment]
    sys.exit(supervise.main())
