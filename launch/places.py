"""Where a launch runs: this host, the hosts of a hostfile over ssh, or the nodes of a Slurm job; and which of them are lost."""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.environment import forwarded, write_deepspeed_env
from launch.hosts import (
    HostPool,
    check_hosts,
    deepspeed_launcher,
    free_port,
    is_this_host,
    read_hostfile,
    write_hostfile,
)
from launch.quoting import is_code, is_plain_path, pdsh_argument
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 10  # that a host may take to answer over ssh
# Of a Slurm node, as sinfo's %t begins; one that ends with a star does not answer.
LOST_STATES = ("down", "drain", "drng", "fail", "maint", "unk")


class Place(ABC):
    """Hosts that can run ranks.

    Args:
        launcher: words for the launcher from the user.
        folder: for what the launcher reads; made when first needed.
    """

    def __init__(self, launcher: list[str], folder: Path):
        self.launcher, self.folder = launcher, folder
        self.chosen: dict[str, int] = {}  # host -> ranks of the last launch

    @abstractmethod
    def command(self, ranks: int) -> list[str]:
        """The words before the script that start so many ranks."""

    def typed(self, words: list[str]) -> list[str]:
        """A script and its arguments, as they must follow `command` for the ranks to get them as they were typed."""
        return words

    @abstractmethod
    def check(self, ranks: int) -> None:
        """Raises UserError if so many ranks cannot be started here; asks no host and writes nothing."""

    @abstractmethod
    def leave_out(self, hosts: set[str]) -> None:
        """Do not use these from now on."""

    def host_of(self, rank: int) -> str | None:
        """The host of a rank of the last launch, by the name that the user gave it."""
        for host, slots in self.chosen.items():
            if rank < slots:
                return host
            rank -= slots
        return None

    @property
    @abstractmethod
    def hosts(self) -> dict[str, int]:
        """All hosts and their ranks."""

    @abstractmethod
    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command on one host, in this folder; a code other than 0 also when it does not end in time."""

    @abstractmethod
    def blame(self, rank: int) -> None:
        """A failure is traced to a rank."""

    @property
    @abstractmethod
    def excluded(self) -> set[str]:
        """Hosts that are not used any more."""


class ThisHost(Place):
    """Ranks on this host alone."""

    def __init__(self, slots: int, launcher: list[str], folder: Path):
        super().__init__(launcher, folder)
        self.slots = slots

    def check(self, ranks: int) -> None:
        if ranks != self.slots:
            raise UserError(f"the ds_config is for {ranks} ranks, not --num_gpus {self.slots}")

    def command(self, ranks: int) -> list[str]:
        self.check(ranks)
        self.chosen = self.hosts
        port = [] if option(self.launcher, "--master_port") else ["--master_port", str(free_port())]
        return [deepspeed_launcher(), "--num_gpus", str(ranks), *port, *self.launcher]

    @property
    def hosts(self) -> dict[str, int]:
        return {socket.gethostname(): self.slots}

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return run(words, timeout_s)

    def leave_out(self, hosts: set[str]) -> None:
        """There is no other."""

    def blame(self, rank: int) -> None:
        """There is no other."""

    @property
    def excluded(self) -> set[str]:
        return set()


class _Pool(Place):
    def __init__(self, hosts: dict[str, int], launcher: list[str], folder: Path):
        super().__init__(launcher, folder)
        self.pool = HostPool(hosts)

    def check(self, ranks: int) -> None:
        self.pool.choose(ranks)

    @property
    def hosts(self) -> dict[str, int]:
        return self.pool.hosts

    @property
    def excluded(self) -> set[str]:
        return self.pool.excluded

    def leave_out(self, hosts: set[str]) -> None:
        self.pool.excluded |= hosts

    def blame(self, rank: int) -> None:
        if (host := self.host_of(rank)) is not None:
            self.pool.blame(host)

    def choose(self, ranks: int) -> dict[str, int]:
        """Hosts for so many ranks, all of which are there; those that are not are left out from now on."""
        while True:
            self.chosen = self.pool.choose(ranks)
            lost = self.lost(list(self.chosen))
            if not lost:
                return self.chosen
            print(f"left out, since they do not answer: {', '.join(lost)}", file=sys.stderr, flush=True)
            self.pool.excluded |= set(lost)

    @abstractmethod
    def lost(self, hosts: list[str]) -> list[str]:
        """Those that cannot be used now."""


class Hosts(_Pool):
    """The hosts of a hostfile; the deepspeed launcher reaches them by pdsh and ssh, a lone one that is this host directly.

    Raises:
        UserError: what the launcher's shells would read otherwise than it was typed.
    """

    def __init__(self, hosts: dict[str, int], launcher: list[str], folder: Path):
        super().__init__(hosts, launcher, folder)
        self.remote = len(hosts) > 1 or not is_this_host(next(iter(hosts)))
        if self.remote:
            _check_paths(Path.cwd(), ROOT, Path(sys.executable))
            _check_launcher(launcher)

    def typed(self, words: list[str]) -> list[str]:
        by_pdsh = self.remote and (option(self.launcher, "--launcher") or "pdsh").lower() == "pdsh"
        return [pdsh_argument(word) for word in words] if by_pdsh else words

    def command(self, ranks: int) -> list[str]:
        chosen = self.choose(ranks)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_hostfile(self.folder / "hostfile", chosen)
        write_deepspeed_env(self.folder / "deepspeed_env")
        os.environ["DS_ENV_FILE"] = str((self.folder / "deepspeed_env").resolve())
        port = [] if option(self.launcher, "--master_port") else ["--master_port", str(free_port())]
        # Over ssh also when one host is left of several: it need not be this one.
        over_ssh = ["--force_multi"] if self.remote else []
        return [deepspeed_launcher(), "--hostfile", str(self.folder / "hostfile"), *over_ssh, *port, *self.launcher]

    def lost(self, hosts: list[str]) -> list[str]:
        if not self.remote:
            return []
        with ThreadPoolExecutor(max_workers=64) as pool:
            answers = list(pool.map(lambda host: self.run_on(host, ["true"], ANSWER_S).returncode == 0, hosts))
        return [host for host, answered in zip(hosts, answers, strict=True) if not answered]

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        if not self.remote:
            return run(words, timeout_s)
        more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))  # as pdsh would
        if port := option(self.launcher, "--ssh_port"):
            more += ["-p", port]
        environment = {**forwarded(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = ["env", *(f"{name}={value}" for name, value in environment.items()), *words]
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={ANSWER_S}", *more]
        return run([*ssh, "--", host, remote], timeout_s)


def option(launcher: list[str], name: str) -> str | None:
    """The value of one of the launcher's options, as `--name value` or `--name=value`; the last one counts."""
    values = [word.partition("=")[2] for word in launcher if word.startswith(f"{name}=")]
    values += [value for word, value in itertools.pairwise(launcher) if word == name]
    return values[-1] if values else None


def _check_paths(*paths: Path) -> None:
    for path in paths:
        if not is_plain_path(path):
            raise UserError(
                f"the deepspeed launcher gives {path} to the shells of other hosts without quotes, where it is not one word; "
                "move the project and its environment to a path without spaces and special characters"
            )


def _check_launcher(words: list[str]) -> None:
    for word in words:
        if is_code(word):
            raise UserError(
                f"'{word}' for the deepspeed launcher would be run as code by the other hosts; leave it out"
            )
    if (address := option(words, "--master_addr")) is not None:
        check_hosts([address], "--master_addr")


class SlurmNodes(_Pool):
    """The nodes of the Slurm job that this process is in; srun starts one launcher on each."""

    def command(self, ranks: int) -> list[str]:
        chosen = self.choose(ranks)
        world = {host: list(range(slots)) for host, slots in chosen.items()}
        packed = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
        step = ["srun", f"--nodes={len(chosen)}", f"--ntasks={len(chosen)}", "--ntasks-per-node=1",
                f"--nodelist={','.join(chosen)}", "--kill-on-bad-exit=1", "--overlap"]  # fmt: skip
        # The launcher's own words, with the number of the node, which only the node knows.
        launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={packed}",
                    f"--master_addr={next(iter(chosen))}", f"--master_port={free_port()}", *self.launcher]  # fmt: skip
        return [*step, "bash", "-c", f'exec {shlex.join(launcher)} --node_rank="$SLURM_NODEID" "$@"', "launcher"]

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return run(["srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap", *words], timeout_s)

    def lost(self, hosts: list[str]) -> list[str]:
        said = _output("sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %t")
        return lost_nodes(said, hosts)


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, help="HOST slots=N lines; more hosts than needed are spares")
    where.add_argument("--num_gpus", type=positive_int, help="ranks on this host alone")
    where.add_argument("--slurm", action="store_true", help="the nodes of this Slurm job; more than needed are spares")
    parser.add_argument(
        "--gpus-per-node", type=positive_int, help="with --slurm: ranks of a node (default: the GPUs that the job has there)"
    )  # fmt: skip


def place_of(args: argparse.Namespace, launcher: list[str], folder: Path) -> Place:
    """The place that a command line names.

    Raises:
        UserError: an unreadable hostfile, or no Slurm job.
    """
    if args.gpus_per_node is not None and not args.slurm:
        raise UserError("--gpus-per-node goes with --slurm; a hostfile has slots=N")
    if args.hostfile is not None:
        return Hosts(read_hostfile(args.hostfile), launcher, folder)
    if args.num_gpus is not None:
        return ThisHost(args.num_gpus, launcher, folder)
    if "SLURM_JOB_NODELIST" not in os.environ:
        raise UserError("--slurm is for the inside of a Slurm job; sbatch launch/train.slurm, or give --hostfile")
    slots = args.gpus_per_node or int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    if not slots:
        raise UserError("this Slurm job has no GPUs; ask for them with --gpus-per-node, or give --gpus-per-node here")
    nodes = _output("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    check_hosts(nodes, "SLURM_JOB_NODELIST")
    return SlurmNodes(dict.fromkeys(nodes, slots), launcher, folder)


def lost_nodes(said: str, hosts: list[str]) -> list[str]:
    """The nodes that sinfo's lines of name and state say are down, leaving, or silent; also those it does not know."""
    states = dict(line.split() for line in said.splitlines())
    return [host for host in hosts if (state := states.get(host, "unk")).startswith(LOST_STATES) or state.endswith("*")]


def run(words: list[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, output captured; code 255 when it does not end in time."""
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's ctrl-C is the supervisor's, not a host that does not answer
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 255, "", f"no answer in {timeout_s:.0f} s")
    except FileNotFoundError:
        raise UserError(f"there is no {words[0]} on this machine; install it") from None


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise UserError(f"{shlex.join(words)} failed: {done.stderr.strip()}")
    return done.stdout
