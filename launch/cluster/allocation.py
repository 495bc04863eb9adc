"""Where a launch runs: this host, the hosts of a hostfile over ssh, or the nodes of a Slurm job; and which of them are lost."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.cluster.environment import deepspeed_env, forwarded
from launch.cluster.hosts import (
    HostPool,
    check_hosts,
    deepspeed_launcher,
    free_port,
    hosts_for,
    is_this_host,
    read_hostfile,
    write_hostfile,
)
from launch.cluster.launcher_options import check_for_other_hosts, launcher_options
from launch.cluster.process_groups import signal_group
from launch.cluster.quoting import is_plain_path, pdsh_argument
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError
from recipe.base.ranks import HOSTS, hosts_variable

ROOT = Path(__file__).resolve().parents[2]
NO_OTHER_HOST = "there is no other host to go on with"
ANSWER_S = 10  # that a host may take to answer over ssh
# Of a Slurm node, as sinfo's %t begins; one that ends with a star does not answer.
LOST_STATES = ("down", "drain", "drng", "fail", "maint", "unk")


class Allocation(ABC):
    """Hosts that can run ranks.

    Args:
        launcher: words for the launcher from the user.
        folder: for what the launcher reads; made when first needed.

    Raises:
        UserError: words that the launcher does not know, or that say where ranks run.
    """

    remote = False  # ranks are reached through another program, which must have the time to end them

    def __init__(self, launcher: list[str], folder: Path):
        self.launcher, self.folder = launcher, folder
        self.options = launcher_options(launcher)
        self.chosen: dict[str, int] = {}  # host -> ranks of the last launch

    @abstractmethod
    def command(self, ranks: int) -> list[str]:
        """The words before the script that start so many ranks."""

    def _deepspeed(self, *where: str) -> list[str]:
        """The deepspeed launcher with the words that say where, the user's, and a port of this host."""
        port = [] if self.options.master_port is not None else ["--master_port", str(free_port())]
        return [deepspeed_launcher(), *where, *port, *self.launcher]

    def _on_this_host(self, ranks: int) -> list[str]:
        # A hostfile that is no file: DeepSpeed would look for /job/hostfile.
        return self._deepspeed("--hostfile", os.devnull, "--num_gpus", str(ranks))

    def typed(self, words: list[str]) -> list[str]:
        """A script and its arguments, as they must follow `command` for the ranks to get them as they were typed."""
        return words

    @abstractmethod
    def check(self, ranks: int) -> None:
        """Raises UserError if so many ranks cannot be started here; asks no host and writes nothing."""

    def check_programs(self) -> None:
        """Raises UserError if a program is missing that reaches the hosts."""
        for program, package in self.programs:
            if shutil.which(program) is None:
                raise UserError(
                    f"there is no {program} on this machine, which starts the ranks of other hosts; install {package}"
                )

    @property
    def programs(self) -> tuple[tuple[str, str], ...]:
        """Programs that reach the hosts, and the packages that they are in."""
        return ()

    @abstractmethod
    def problem_without(self, hosts: Set[str], ranks: int) -> str | None:
        """Why so many ranks cannot go on without these hosts, if they cannot; asks no host and changes nothing."""

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
    def by_hand(self, host: str) -> str:
        """The command with which a user sees whether a host answers."""

    @abstractmethod
    def blame(self, rank: int) -> None:
        """A failure is traced to a rank."""

    @property
    @abstractmethod
    def excluded(self) -> set[str]:
        """Hosts that are not used any more."""


class ThisHost(Allocation):
    """Ranks on this host alone."""

    def __init__(self, slots: int, launcher: list[str], folder: Path):
        super().__init__(launcher, folder)
        self.slots = slots

    def check(self, ranks: int) -> None:
        if ranks != self.slots:
            raise UserError(
                f"the ds_config is for {ranks} ranks, not --num_gpus {self.slots}; give --num_gpus {ranks} or another ds_config"
            )

    def command(self, ranks: int) -> list[str]:
        self.check(ranks)
        self.chosen = self.hosts
        return self._on_this_host(ranks)

    @property
    def hosts(self) -> dict[str, int]:
        return {socket.gethostname(): self.slots}

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return run(words, timeout_s)

    def by_hand(self, host: str) -> str:
        return f"{sys.executable} --version"

    def problem_without(self, hosts: Set[str], ranks: int) -> str | None:
        return NO_OTHER_HOST

    def leave_out(self, hosts: set[str]) -> None:
        """There is no other host."""

    def blame(self, rank: int) -> None:
        """There is no other host."""

    @property
    def excluded(self) -> set[str]:
        return set()


class _Pool(Allocation):
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

    def problem_without(self, hosts: Set[str], ranks: int) -> str | None:
        try:
            hosts_for(self.hosts, ranks, self.excluded | hosts)
        except UserError as error:
            return str(error)
        return None if hosts else NO_OTHER_HOST

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
            by_hand = f"{', '.join(lost)} (try by hand: {self.by_hand(lost[0])})"
            print(f"left out, since they do not answer: {by_hand}", file=sys.stderr, flush=True)
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
            check_for_other_hosts(self.options)
            self._environment()

    @property
    def programs(self) -> tuple[tuple[str, str], ...]:
        pdsh = (("pdsh", "pdsh, or give --launcher openmpi after --"),) if self.by_pdsh else ()
        return (("ssh", "openssh-client"), *pdsh) if self.remote else ()

    @property
    def by_pdsh(self) -> bool:
        return self.remote and self.options.launcher == "pdsh"

    def _environment(self) -> str:
        """What other hosts are given, as text for the launcher."""
        return deepspeed_env(by_pdsh=self.by_pdsh)

    def typed(self, words: list[str]) -> list[str]:
        return [pdsh_argument(word) for word in words] if self.by_pdsh else words

    def command(self, ranks: int) -> list[str]:
        chosen = self.choose(ranks)
        names = f"{HOSTS}={hosts_variable(chosen)}"  # by which records of the ranks name their hosts
        if not self.remote:  # DeepSpeed would want an answer over ssh from each hostfile's first host
            return ["env", names, *self._on_this_host(ranks)]
        environment = f"{self._environment()}{names}\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        hostfile, env_file = self.folder / "hostfile", self.folder / "deepspeed_env"
        write_hostfile(hostfile, chosen)
        env_file.write_text(environment, encoding="utf-8")
        os.environ["DS_ENV_FILE"] = str(env_file.resolve())
        # Over ssh also when one host is left of several: it need not be this one.
        return self._deepspeed("--hostfile", str(hostfile), "--force_multi")

    def lost(self, hosts: list[str]) -> list[str]:
        if not self.remote:
            return []
        with ThreadPoolExecutor(max_workers=64) as pool:
            answers = list(pool.map(lambda host: self.run_on(host, ["true"], ANSWER_S).returncode == 0, hosts))
        return [host for host, answered in zip(hosts, answers, strict=True) if not answered]

    def by_hand(self, host: str) -> str:
        port = [] if self.options.ssh_port is None else ["-p", str(self.options.ssh_port)]
        return shlex.join(["ssh", "-o", "BatchMode=yes", *port, host, sys.executable, "--version"])

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        if not self.remote:
            return run(words, timeout_s)
        more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))  # as pdsh would
        if self.options.ssh_port is not None:
            more += ["-p", str(self.options.ssh_port)]
        environment = {**forwarded(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = ["env", *(f"{name}={value}" for name, value in environment.items()), *words]
        remote = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={ANSWER_S}", *more]
        return run([*ssh, "--", host, remote], timeout_s)


def _check_paths(*paths: Path) -> None:
    for path in paths:
        if not is_plain_path(path):
            raise UserError(
                f"the deepspeed launcher gives {path} to the shells of other hosts without quotes, where it is not one word; "
                "move the project and its environment to a path without spaces and special characters"
            )


class SlurmNodes(_Pool):
    """The nodes of the Slurm job that this process is in; srun starts one launcher on each."""

    remote = True
    programs = (("srun", "slurm-client"), ("sinfo", "slurm-client"))

    def command(self, ranks: int) -> list[str]:
        chosen = self.choose(ranks)
        world = {host: list(range(slots)) for host, slots in chosen.items()}
        packed = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
        step = ["srun", f"--nodes={len(chosen)}", f"--ntasks={len(chosen)}", "--ntasks-per-node=1",
                f"--nodelist={','.join(chosen)}", "--kill-on-bad-exit=1", "--overlap"]  # fmt: skip
        # The launcher's own words, with the number of the node, which only the node knows.
        launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={packed}",
                    f"--master_addr={next(iter(chosen))}", f"--master_port={free_port()}", *self.launcher]  # fmt: skip
        names = f"{HOSTS}={hosts_variable(chosen)}"  # by which records of the ranks name their hosts
        return [
            *step,
            "env",
            names,
            "bash",
            "-c",
            f'exec {shlex.join(launcher)} --node_rank="$SLURM_NODEID" "$@"',
            "launcher",
        ]

    def by_hand(self, host: str) -> str:
        return f"srun --overlap --nodes=1 --nodelist={host} {sys.executable} --version"

    def run_on(self, host: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return run(["srun", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap", *words], timeout_s)

    def lost(self, hosts: list[str]) -> list[str]:
        message = _output("sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %t")
        return lost_nodes(message, hosts)


def add_allocation_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, help="HOST slots=N lines; more hosts than needed are spares")
    where.add_argument("--num_gpus", type=positive_int, help="ranks on this host alone")
    where.add_argument("--slurm", action="store_true", help="the nodes of this Slurm job; more than needed are spares")
    parser.add_argument(
        "--gpus-per-node", type=positive_int, help="with --slurm: ranks of a node (default: the GPUs that the job has there)"
    )  # fmt: skip


def allocation_of(args: argparse.Namespace, launcher: list[str], folder: Path) -> Allocation:
    """The allocation that a command line names.

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


def lost_nodes(message: str, hosts: list[str]) -> list[str]:
    """The nodes that sinfo's lines of name and state say are down, leaving, or silent; also those it does not know."""
    states = dict(line.split() for line in message.splitlines())
    return [host for host in hosts if (state := states.get(host, "unk")).startswith(LOST_STATES) or state.endswith("*")]


_running: set[subprocess.Popen[str]] = set()


def run(words: list[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, output captured; code 255 when it does not end in time."""
    try:
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a terminal's ctrl-C is the supervisor's, not a host that does not answer
        )
    except FileNotFoundError:
        raise UserError(f"there is no {words[0]} on this machine; install it") from None
    _running.add(process)
    with process:  # which closes its pipes
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 255, "", f"no answer in {timeout_s:.0f} s")
        finally:
            _running.discard(process)
            _end(process)
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def end_running() -> None:
    """End the commands that other threads run, which then return."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a command with what it has started, which would otherwise hold its output open for whoever reads that."""
    if process.poll() is None:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _output(*words: str) -> str:
    done = run(list(words))
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise UserError(
            f"{shlex.join(words)} failed: {reason}; run it by hand in this job, and start again when it works"
        )
    return done.stdout
