"""This process among those that a launcher started, and its environment."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from recipe.base.errors import UserError

# Exit codes of a launched script besides 0 and 2 (what a user must change): start again from the newest checkpoint.
RESTART = 75  # EX_TEMPFAIL of sysexits.h
SHM_BUFFER_NAME = "deepspeed_allreduce_buffer"  # of DeepSpeed's csrc/cpu/comm/shm.cpp
# What launch/train.sh calls the hosts of a launch, HOST:RANKS of each in the order of the ranks.
HOSTS = "RECIPE_HOSTS"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # ask a run to save and stop


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """These variables for a while, also in processes that are started meanwhile; then those that there were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_first_rank() -> bool:
    """Whether this process speaks for all; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line, on rank 0."""
    if is_first_rank():
        print(text, flush=True)


def rank() -> int:
    """This process's rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def hosts_variable(hosts: Mapping[str, int]) -> str:
    """Hosts and their ranks as the value of `HOSTS`."""
    return ",".join(f"{host}:{ranks}" for host, ranks in hosts.items())


def host_name() -> str:
    """This rank's host by the name that the hostfile or Slurm has for it; without launch/train.sh the machine's own name."""
    left = rank()
    for host in os.environ.get(HOSTS, "").split(",") if "RANK" in os.environ else ():
        name, _, ranks = host.rpartition(":")
        if name and left < int(ranks):
            return name
        left -= int(ranks or 0)
    return socket.gethostname()


def machine_name() -> str:
    """The machine's own name where it is another than `host_name`, otherwise nothing."""
    return other_name(host_name(), socket.gethostname())


def other_name(host: str, machine: str) -> str:
    """The name of a machine where it is another than its host's, whatever domain either has; otherwise nothing."""
    return "" if _short(host) == _short(machine) else machine


def _short(host: str) -> str:
    """A name without its domain; an address as it is."""
    name = host.lower()
    return name if name.replace(".", "").isdigit() else name.partition(".")[0]


def located(host: str, machine: str) -> str:
    """A host for people, with the machine's own name where that is another."""
    return f"{host} (machine {machine})" if machine else host


def launched_world_size() -> int | None:
    """Ranks that the launcher started; None without one."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def launcher_for(ranks: int, ranks_here: int) -> str:
    """The words before a script that start so many ranks, of which `ranks_here` are on this host."""
    return f"deepspeed --num_gpus {ranks}" if ranks == ranks_here else "deepspeed --hostfile HOSTFILE"


def ranks_of_this_host(ranks: int) -> int:
    """As DeepSpeed's launcher sets it; all of them without a launcher."""
    return int(os.environ.get("LOCAL_SIZE", ranks))


def required_world_size() -> int:
    """Ranks that the launcher started.

    Raises:
        UserError: started without a launcher.
    """
    size = launched_world_size()
    if size is None:
        raise UserError(
            f"this needs the launcher, which starts it on each rank: deepspeed --num_gpus N {shlex.join(sys.argv)}; for several "
            "hosts --hostfile HOSTFILE in place of --num_gpus N"
        )
    return size


def remove_shared_memory() -> None:
    """Unlink this rank's buffer of the CPU ranks' collective (66 MiB in /dev/shm), which DeepSpeed leaves behind at exit."""
    variables = ("MASTER_ADDR", "MASTER_PORT", "RANK")
    if all(name in os.environ for name in variables):
        names = (SHM_BUFFER_NAME, str(os.getuid()), *(os.environ[name] for name in variables))
        Path("/dev/shm", "_".join(names)).unlink(missing_ok=True)


def leave(code: int) -> NoReturn:
    """End the process of a launched script, whose files and process group are closed by now.

    Without the destructors that follow Python's end: on a busy machine a thread of a library below us is sometimes
    still alive there, and the abort would take the place of the exit code.
    """
    if launched_world_size() is None:
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # their file can be on a disk that is full
            stream.flush()
    os._exit(code)
