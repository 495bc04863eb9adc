"""The small cluster of docs/runbook.md: its commands as they stand on the page, on two addresses of this machine and on Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.base.files import read_json_lines
from recipe.run.records import read_attempts
from tests.clusters import loopback_hosts, slurm_says, wait_for
from tests.conftest import CPU, ROOT
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.xdist_group("engines")]

PAGE = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
HOSTS, SLURM = "two cpu hosts", "one-node slurm"


def blocks(step: int, form: str) -> list[str]:
    """The commands of a step of the page in one of its forms."""
    (section,) = re.findall(rf"^## {step}\. .*?(?=^## )", PAGE, re.M | re.S)
    _, *parts = re.split(r"^\*\*(.+?)\*\*", section, flags=re.M)
    texts = [text for names, text in zip(parts[::2], parts[1::2], strict=True) if form in names.lower().split(", ")]
    return [block for text in texts for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)]


class Reader:
    """Who follows the page in a folder that looks like the project's after `make quickstart`.

    Args:
        form: the column of the page.
    """

    def __init__(self, folder: Path, form: str, environment: dict[str, str]):
        self.folder, self.form = folder, form
        path = os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), environment["PATH"]))
        self.environment = {**environment, "PATH": path}
        quickstart, shell = blocks(1, form)
        assert quickstart == "make quickstart\n"  # the fixture `project` stands for it
        self.shell = shell

    def words(self, commands: str) -> list[str]:
        return ["bash", "-ec", self.shell + commands]

    def do(self, step: int, number: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a block to its end, which must be a good one."""
        commands = blocks(step, self.form)[number]
        done = subprocess.run(
            self.words(commands), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def start(self, step: int, number: int = 0) -> Attempt:
        return Attempt(self, blocks(step, self.form)[number])


class Attempt:
    """A block that runs in a terminal of its own."""

    def __init__(self, reader: Reader, commands: str):
        self.log = reader.folder / f"log_{len(list(reader.folder.glob('log_*')))}"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                reader.words(commands), cwd=reader.folder, env=reader.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")[-4000:]


@pytest.fixture
def project(tmp_path, prepared):
    """What the commands of the page find in the project's folder."""
    for name in ("launch", "recipe", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    made = tmp_path / "work/quickstart"
    made.mkdir(parents=True)
    (made / "tokenizer").symlink_to(prepared.tokenizer)
    (made / "tokens").symlink_to(prepared.tokens)
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture
def ssh_reader(project, tmp_path_factory):
    """On two hosts that are reached as a user's ~/.ssh/config and known hosts have it."""
    keys = tmp_path_factory.mktemp("ssh")
    with loopback_hosts(keys, ["127.0.0.1", "127.0.0.2"]) as hosts:
        config = keys / "config"
        config.write_text(
            f"Host 127.0.0.*\n  Port {hosts.port}\n  IdentityFile {keys}/key\n  StrictHostKeyChecking no\n"
            f"  UserKnownHostsFile {keys}/known\n  LogLevel ERROR\n"
        )
        ssh = project / "bin/ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        ssh.chmod(0o755)
        yield Reader(project, HOSTS, CPU)


def events(run: Path) -> list[dict]:
    return list(read_json_lines(run / "events.jsonl"))


def wait_for_event(run: Path, kind: str, number: int = 1, **fields: object) -> None:
    """Until so many events of a kind with these fields are there."""

    def there() -> bool:
        return sum(e["event"] == kind and fields.items() <= e.items() for e in events(run)) >= number

    wait_for(there, f"event {kind}")


def test_two_cpu_hosts_from_preflight_to_a_branch(ssh_reader):
    run = ssh_reader.folder / "work/cluster/run"
    _, hostfile = blocks(2, HOSTS)  # the first installs sshd and pdsh, and makes a key
    subprocess.run(ssh_reader.words(hostfile), cwd=ssh_reader.folder, env=ssh_reader.environment, check=True)
    assert "2 of 2 hosts" in ssh_reader.do(3).stdout
    assert (ssh_reader.folder / "work/cluster/good_hosts").read_text() == "127.0.0.1 slots=1\n127.0.0.2 slots=1\n"
    assert "the engine does what is planned" in ssh_reader.do(5).stdout
    assert "123 steps" in ssh_reader.do(6).stdout

    first = ssh_reader.start(7)
    wait_for_event(run, "checkpoint")
    ssh_reader.do(11)
    wait_for_event(run, "started", attempt=2)
    assert "running, start 2" in ssh_reader.do(9).stdout
    ssh_reader.do(10)
    assert first.code() == 75, first.text()
    (killed,) = (e for e in events(run) if e["event"] == "attempt_ended")
    assert (killed["kind"], killed["rank"], killed["host"]) == ("killed", 1, "127.0.0.2")

    ssh_reader.do(12, 0)
    fewer = ssh_reader.start(12, 1)
    wait_for_event(run, "started", ranks=1)
    ssh_reader.do(10)
    assert fewer.code() == 75, fewer.text()

    ssh_reader.do(13, 0)
    larger = ssh_reader.start(13, 1)
    wait_for_event(run, "started", attempt=4, ranks=2)
    ssh_reader.do(10)
    assert larger.code() == 75, larger.text()
    batches = [start["ds_config"]["train_batch_size"] for start in read_attempts(run)]
    assert batches == [16, 16, 16, 32]

    ssh_reader.do(14)
    assert [e["event"] for e in events(ssh_reader.folder / "work/cluster/branch")] == ["branched"]


def test_one_node_slurm_from_preflight_to_a_chain(project, slurm):
    reader = Reader(project, SLURM, slurm)
    assert "127.0.0.1" not in reader.do(3).stdout
    run = project / "work/cluster/slurm"
    job = reader.do(7).stdout.split()[-1]
    wait_for_event(run, "checkpoint")
    stop = blocks(10, SLURM)[0].replace("JOB", job)
    subprocess.run(reader.words(stop), cwd=project, env=reader.environment, check=True)
    wait_for_event(run, "stopped")
    wait_for(lambda: slurm_says(slurm, "squeue", "-h", "-j", job, "-o", "%t").strip() == "PD", "requeued job")
    slurm_says(slurm, "scancel", job)

    chain = reader.do(15).stdout.split()[-1]
    assert sorted(slurm_says(slurm, "squeue", "-h", "-r", "-j", chain, "-o", "%K").split()) == ["1", "2", "3"]
    slurm_says(slurm, "scancel", chain)
    wait_for(lambda: not slurm_says(slurm, "squeue", "-h", "-j", chain), "end of the chain")
