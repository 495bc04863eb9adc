"""Real clusters on this machine: a Slurm of one node, and hosts that are reached over ssh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from launch.cluster.hosts import free_port
from tests.conftest import CPU
from tests.patience import PATIENCE_S

SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket
SlurmctldPort={port_a}
SlurmdPort={port_b}
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/d
SlurmctldPidFile={state}/ctld.pid
SlurmdPidFile={state}/d.pid
SlurmctldLogFile={state}/ctld.log
SlurmdLogFile={state}/d.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=60
NodeName=localhost CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def need(*commands: str, package: str) -> None:
    """Skip the test where a command is not installed; CI must have all."""
    if any(shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin") is None for command in commands):
        if os.environ.get("CI"):
            pytest.fail(f"CI needs {package}; install it")
        pytest.skip(f"needs Debian's {package}")


@contextmanager
def slurm_cluster(state: Path) -> Iterator[dict[str, str]]:
    """A Slurm cluster of this machine, with its own munge; the environment in which its commands find it."""
    need("slurmctld", "munged", package="slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd runs jobs as root's child only")
    (state / "ctld").mkdir()
    (state / "d").mkdir()
    state.chmod(0o755)
    for parent in state.parents[:3]:
        parent.chmod(0o755)
    conf, key = state / "slurm.conf", state / "munge.key"
    conf.write_text(SLURM_CONF.format(state=state, port_a=free_port(), port_b=free_port()))
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {**CPU, "SLURM_CONF": str(conf)}
    munge = ["munged", "--foreground", f"--key-file={key}", f"--socket={state}/munge.socket", f"--pid-file={state}/m.pid",
             f"--log-file={state}/munge.log", f"--seed-file={state}/munge.seed", "--force"]  # fmt: skip
    daemons = [subprocess.Popen(munge, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    try:
        wait_for(lambda: (state / "munge.socket").exists(), "munged")
        for name in ("slurmctld", "slurmd"):
            words = [name, "-D", *(["-N", "localhost"] if name == "slurmd" else [])]
            daemons.append(
                subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        wait_for(lambda: "idle" in slurm_says(environment, "sinfo", "-h", "-o", "%T"), "an idle node")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=PATIENCE_S)


def slurm_says(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    ).stdout


def wait_for(ready, what: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.1)


SSHD_CONFIG = """
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{address}.pid
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
MaxStartups 100
"""


@dataclass
class LoopbackHosts:
    """This machine under several addresses, each with an sshd of its own; killing one ends all that it started."""

    port: int
    environment: dict[str, str]  # in which pdsh and ssh reach them
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def hostfile(self, path: Path, slots: int) -> Path:
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.daemons))
        return path

    @property
    def launcher(self) -> list[str]:
        """Words for the deepspeed launcher."""
        return ["--master_addr", "127.0.0.1", "--no_ssh_check", "--ssh_port", str(self.port)]

    def kill(self, address: str) -> None:
        daemon = psutil.Process(self.daemons[address].pid)
        for process in (daemon, *daemon.children(recursive=True)):
            process.send_signal(signal.SIGKILL)


@contextmanager
def loopback_hosts(folder: Path, addresses: list[str]) -> Iterator[LoopbackHosts]:
    need("sshd", "ssh", "pdsh", package="openssh-server and pdsh")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    options = f"-i {folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known -o LogLevel=ERROR"
    hosts = LoopbackHosts(port, {**CPU, "PDSH_SSH_ARGS_APPEND": options})
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    assert sshd is not None
    try:
        for address in addresses:
            config = folder / f"sshd_{address}"
            config.write_text(SSHD_CONFIG.format(port=port, address=address, folder=folder))
            hosts.daemons[address] = subprocess.Popen([sshd, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
        wait_for(lambda: all((folder / f"{address}.pid").exists() for address in addresses), "sshd")
        yield hosts
    finally:
        for daemon in hosts.daemons.values():
            daemon.terminate()
            daemon.wait(timeout=PATIENCE_S)
