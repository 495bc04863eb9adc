"""Hostfiles: which hosts a run uses, without those that failed; and a port for a run on this one."""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from recipe.base.errors import ConfigError, UserError

FAILURES_OF_A_HOST = 2
_LINE = re.compile(r"(\S+)\s+slots=([0-9]{1,6})")
# RFC 1123, section 2.1: letters, digits and inner hyphens; and the underscore, which /etc/hosts and Slurm have too.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NAME_LENGTH = 253


def host_problem(host: str) -> str | None:
    """Why this is no host: neither a name nor an IPv4 or IPv6 address. Such a word could be an option or code to ssh or a shell."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return None if "%" not in str(address) else f"{host!r} has a zone; name the host instead"
    labels = host.split(".")
    is_name = len(host) <= _NAME_LENGTH and all(_LABEL.fullmatch(label) for label in labels)
    if not is_name or labels[-1].isdigit():  # digits at the end are an address, and this is none
        return f"{host!r} is no host name and no IP address; a user or a port of a host goes into ~/.ssh/config"
    return None


def check_hosts(hosts: Iterable[str], source: str) -> None:
    """Raises UserError for words that are no hosts; `source` says where they are from."""
    if problems := [problem for host in hosts if (problem := host_problem(host)) is not None]:
        raise ConfigError(source, problems)


def is_this_host(host: str) -> bool:
    """Whether a name or an address is that of the machine that this process is on."""
    if host.lower() in ("localhost", socket.gethostname().lower()):
        return True
    try:
        addresses = {(family, address[0]) for family, *_, address in socket.getaddrinfo(host, None)}
    except OSError:  # ssh may know it all the same
        return False
    return any(_can_bind(family, str(address)) for family, address in addresses)


def _can_bind(family: int, address: str) -> bool:
    """A socket can be bound to addresses of this machine alone."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> GPUs, in the file's order.

    Raises:
        UserError: no such file, or all lines that are not `host slots=N` with a new host.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"--hostfile {path} cannot be read ({error.strerror}); write it, a line 'HOST slots=N' for each host, or give --num_gpus N "
            "for ranks on this host alone"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"--hostfile {path} cannot be read: it is not text in UTF-8; save it as that") from None
    hosts: dict[str, int] = {}
    lines: dict[str, int] = {}  # host in lower case -> its line
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        problem = _problem_of(line)
        if problem is None:
            host, _, slots = line.partition("slots=")
            host = host.strip()
            if (first := lines.setdefault(host.lower(), number)) != number:
                problem = f"{host} is a duplicate of line {first}; remove one"
            hosts[host] = int(slots)
        if problem is not None:
            problems.append(f"line {number}: {problem}")
    if problems:
        raise ConfigError(path, problems)
    if not hosts:
        raise UserError(f"{path} names no host; write a line 'HOST slots=N' for each")
    return hosts


def _problem_of(line: str) -> str | None:
    """What is wrong with one line of a hostfile."""
    match = _LINE.fullmatch(line)
    if match is None:
        return f"{line!r} is not 'HOST slots=N'"
    if int(match[2]) == 0:
        return f"{match[1]!r} has slots=0, so no rank; write the number of its GPUs or remove the line"
    if ":" in match[1]:  # host_problem lets IPv6 pass; pdsh reads TYPE:HOST
        return f"{match[1]!r} has a colon, which pdsh reads otherwise; give an IPv6 address a name in /etc/hosts or ~/.ssh/config"
    return host_problem(match[1])


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
    slots_chosen = sum(chosen.values())
    if slots_chosen != ranks:
        without = f" without {', '.join(sorted(excluded))}" if excluded else ""
        more = slots_chosen > ranks
        advice = f"change slots=N so that the first hosts add up to {ranks}" if more else "add a host"
        if slots_chosen:
            advice += f", or give a ds_config for {slots_chosen} ranks (a checkpoint is resharded for them)"
        raise UserError(f"the hosts{without} give {slots_chosen} ranks, but the ds_config is for {ranks}; {advice}")
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
