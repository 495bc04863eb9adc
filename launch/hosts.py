"""Hostfiles: which hosts a run uses, without those that failed; and a port for a run on this one."""

from __future__ import annotations

import re
import socket
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from recipe.base.errors import UserError

FAILURES_OF_A_HOST = 2
_LINE = re.compile(r"(\S+)\s+slots=(\d+)")


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> GPUs, in the file's order.

    Raises:
        UserError: no such file, or a line that is not `host slots=N`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"--hostfile {path} cannot be read ({error.strerror}); the run would stay on one host"
        ) from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or match[1] in hosts:
            raise UserError(f"{path} line {number}: '{text}' is not a new 'HOST slots=N'")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path} names no host")
    return hosts


class HostPool:
    """The hosts of a hostfile, and which of them are not used any more."""

    def __init__(self, hosts: dict[str, int]):
        self.hosts, self._failures = hosts, Counter[str]()
        self.excluded: set[str] = set()

    def blame(self, host: str) -> None:
        """A failure is traced to a host; one that has FAILURES_OF_A_HOST is left out from now on."""
        self._failures[host] += 1
        if host in self.hosts and self._failures[host] >= FAILURES_OF_A_HOST:
            self.excluded.add(host)

    def choose(self, ranks: int) -> dict[str, int]:
        """See `hosts_for`."""
        return hosts_for(self.hosts, ranks, self.excluded)


def hosts_for(hosts: dict[str, int], ranks: int, excluded: Collection[str]) -> dict[str, int]:
    """The first hosts that give exactly so many ranks; what is left over is spare.

    Raises:
        UserError: too few, or the slots do not add up.
    """
    chosen: dict[str, int] = {}
    for host, slots in hosts.items():
        if host not in excluded and sum(chosen.values()) < ranks:
            chosen[host] = slots
    found = sum(chosen.values())
    if found != ranks:
        without = f" without {', '.join(sorted(excluded))}" if excluded else ""
        raise UserError(
            f"the hosts{without} give {found} ranks, but the ds_config is for {ranks}; add a host, or give the ds_config "
            "for what is left (the checkpoint is resharded)"
        )
    return chosen


def write_hostfile(path: Path, hosts: dict[str, int]) -> None:
    path.write_text("".join(f"{host} slots={slots}\n" for host, slots in hosts.items()), encoding="utf-8")


def deepspeed_launcher() -> str:
    """The launcher of this environment, whatever PATH says."""
    return str(Path(sys.executable).with_name("deepspeed"))


def free_port() -> int:
    """A port of this host that nobody listens on, since another job may hold the launcher's default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
