"""The same job on other engines: real Ray nodes and a real Slurm give the local run's bytes, also when workers die."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.core import engines
from data_prep.core.engines import make_engine
from data_prep.core.partial_files import remove_partial_files
from data_prep.core.stage import Stage
from data_prep.documents.reading import write_documents
from recipe.base.errors import UserError
from tests.clusters import slurm_says, wait_for
from tests.conftest import CPU, ROOT
from tests.data_prep.job_server import run_job
from tests.data_prep.test_jobs import contents, job_words, parts_of
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.xdist_group("engines")  # clusters of their own, one at a time


@pytest.fixture(scope="module")
def source(prepared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return parts_of(prepared, folder, 4)


@pytest.fixture(scope="module")
def local(prepared, source, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What the local engine writes, by job."""
    written = {}
    for job in ("curate", "dedup", "tokenize_corpus"):
        output = tmp_path_factory.mktemp("local") / job
        done = run_job(*job_words(job, source, output, prepared))
        assert done.returncode == 0, done.stderr
        written[job] = contents(output)
    return written


@pytest.fixture(scope="module")
def ray_address():
    """A Ray cluster of two nodes on this machine."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def workers_of_ray() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::outcome_of")]


def test_two_ray_nodes_give_the_bytes_of_a_local_run(prepared, source, local, ray_address, tmp_path):
    words = job_words("dedup", source, tmp_path / "out", prepared)  # phases with a shuffle between them
    done = run_job(*words, "--workers", 2, "--engine", "ray", "--engine-option", f"address={ray_address}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "out") == local["dedup"]


def test_a_ray_worker_that_is_killed_is_replaced(prepared, source, local, ray_address, tmp_path):
    words = job_words("curate", source, tmp_path / "out", prepared, "--workers", 2, "--engine", "ray")
    process = subprocess.Popen(
        [sys.executable, *map(str, words), "--engine-option", f"address={ray_address}"],
        cwd=ROOT,
        env=CPU,
        stderr=subprocess.PIPE,
    )
    killed = False
    while process.poll() is None and not killed:
        for worker in workers_of_ray()[:1]:
            worker.send_signal(signal.SIGKILL)
            killed = True
        time.sleep(0.01)
    _, message = process.communicate(timeout=PATIENCE_S)
    assert killed
    assert process.returncode == 0, message
    assert contents(tmp_path / "out") == local["curate"]


def test_an_error_of_the_user_comes_back_from_a_ray_worker_as_one_sentence(prepared, ray_address, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    words = job_words("curate", tmp_path / "in.jsonl", tmp_path / "out", prepared, "--max-bad", 0, "--engine", "ray")
    done = run_job(*words, "--engine-option", f"address={ray_address}")
    assert done.returncode == 2
    assert "missing field 'text'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_ray_cluster_that_is_not_there_is_told(tmp_path):
    engine = make_engine("ray", ["address=127.0.0.1:1"], tmp_path)
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*start one with ray start"):
        list(engine.run(Counted(), [(0, 0)], 1, "x: phase"))


def test_a_slurm_job_array_gives_the_bytes_of_a_local_run(prepared, source, local, slurm, tmp_path):
    words = job_words("tokenize_corpus", source, tmp_path / "out", prepared, "--workers", 2, "--engine", "slurm")
    done = run_job(*words, "--engine-option", "partition=cpu", "--engine-option", "time=5", env=slurm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "out") == local["tokenize_corpus"]


def test_an_array_that_is_cancelled_is_replaced(prepared, source, local, slurm, tmp_path):
    words = job_words("tokenize_corpus", source, tmp_path / "out", prepared, "--workers", 2, "--engine", "slurm")
    # the node takes no jobs, so that the array cannot end before it is cancelled
    slurm_says(slurm, "scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=test")
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=slurm, stderr=subprocess.PIPE, text=True
    )
    try:
        first = waiting_jobs(slurm, "tokenize")
        slurm_says(slurm, "scancel", "--user=root")
        wait_for(lambda: waiting_jobs(slurm, "tokenize") != first, "another array")
    finally:
        slurm_says(slurm, "scontrol", "update", "NodeName=localhost", "State=RESUME")
    _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, message
    assert contents(tmp_path / "out") == local["tokenize_corpus"]


def waiting_jobs(slurm: dict[str, str], stage: str) -> list[str]:
    """The jobs of a stage that wait, once there are any."""

    def ask() -> list[str]:
        lines = slurm_says(slurm, "squeue", "--noheader", "--states=PENDING", "--format=%j %A").splitlines()
        return [line for line in lines if line.startswith(f"{stage}-")]

    wait_for(ask, "waiting job")
    return ask()


def test_a_driver_that_is_interrupted_cancels_its_jobs(prepared, source, slurm, tmp_path):
    words = job_words("curate", source, tmp_path / "out", prepared, "--workers", 2, "--engine", "slurm")
    slurm_says(slurm, "scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=test")
    try:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, env=slurm, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
        )  # fmt: skip
        waiting_jobs(slurm, "curate")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) != 0
        assert slurm_says(slurm, "squeue", "--noheader", "--states=PENDING") == ""
    finally:
        slurm_says(slurm, "scontrol", "update", "NodeName=localhost", "State=RESUME")


class Counted:
    """A function that counts how often it is pickled."""

    pickled = 0

    def __call__(self, task: int, number: int) -> dict[str, int]:
        return {"double": 2 * task}

    def __reduce__(self) -> tuple[type[Counted], tuple[()]]:
        Counted.pickled += 1
        return Counted, ()


def test_local_workers_get_the_function_once_and_a_bounded_number_of_tasks(tmp_path, monkeypatch):
    submitted = []

    class Pool(ThreadPoolExecutor):  # what it is given goes no other way than to processes
        def submit(self, *words):
            submitted.append(words)
            assert len(pickle.dumps(words)) < 1000
            return super().submit(*words)

    monkeypatch.setattr(engines, "ProcessPoolExecutor", lambda workers, **more: Pool(workers))
    engine = make_engine("local", [], tmp_path / "scratch")
    for _ in range(2):
        submitted.clear()
        Counted.pickled = 0
        results = {}
        for number, result in engine.run(Counted(), [(n, n) for n in range(100)], 3, "x: phase"):
            results[number] = result
            assert len(submitted) - len(results) < 2 * 3
        assert results == {n: {"double": 2 * n} for n in range(100)}
        assert Counted.pickled == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def ctrl_c_is(task: int, number: int) -> dict[str, Any]:
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"heard": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or not blocked}


def test_local_workers_leave_ctrl_c_to_the_driver(tmp_path):
    results = dict(make_engine("local", [], tmp_path).run(ctrl_c_is, [(0, 0), (1, 1)], 2, "x: phase"))
    assert results == {0: {"heard": False}, 1: {"heard": False}}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def writes_for_a_minute(folder: Path, number: int) -> dict[str, int]:
    """Writes who it is, and goes on in the middle of a file."""

    def documents() -> Iterator[dict[str, str]]:
        yield {"id": "a", "text": "t"}
        (folder / f"{number}.pid").write_text(str(os.getpid()))
        time.sleep(60)

    return {"written": write_documents(folder / "x.jsonl", documents()).documents}


DRIVER = """import sys
from pathlib import Path
from data_prep.core.engines import make_engine
from tests.data_prep.core.test_engines import writes_for_a_minute
folder = Path(sys.argv[1])
if __name__ == "__main__":
    list(make_engine("local", [], folder).run(writes_for_a_minute, [(0, folder), (1, folder)], 2, "x: phase"))
"""


def test_local_workers_end_with_their_driver_and_share_no_partial_file(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", tmp_path], env={**CPU, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    wait_for(lambda: len([p for p in tmp_path.glob("*.pid") if p.read_text()]) == 2, "workers in their tasks")
    workers = [psutil.Process(int(path.read_text())) for path in tmp_path.glob("*.pid")]
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(workers, timeout=PATIENCE_S)[1] == []
    left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert sorted(left) == sorted(f".x.jsonl.{socket.gethostname().split('.')[0]}-{w.pid}.partial" for w in workers)
    remove_partial_files(tmp_path)
    assert not list(tmp_path.glob(".x*"))


def waits_for_the_other(folder: Path, number: int) -> dict[str, bool]:
    (folder / str(number)).touch()
    wait_for(lambda: (folder / str(1 - number)).exists(), "the other task")
    return {"met": True}


def test_two_workers_work_at_once(tmp_path):
    tasks = [(number, tmp_path) for number in range(2)]
    results = dict(make_engine("local", [], tmp_path / "scratch").run(waits_for_the_other, tasks, 2, "x: phase"))
    assert results == {0: {"met": True}, 1: {"met": True}}


def fails_beside_a_long_one(folder: Path, number: int) -> dict[str, int]:
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    if number == 1:
        wait_for(lambda: (folder / "0.pid").exists(), "the other task")
        raise UserError("this one fails")
    time.sleep(60)
    return {}


def test_after_an_error_no_local_worker_goes_on(tmp_path):
    engine = make_engine("local", [], tmp_path / "scratch")
    with pytest.raises(UserError, match="this one fails"):
        list(engine.run(fails_beside_a_long_one, [(number, tmp_path) for number in range(9)], 2, "x: phase"))
    begun = [int(path.read_text()) for path in tmp_path.glob("*.pid") if path.read_text()]
    assert len(begun) < 4, "tasks began after the error"
    assert not any(psutil.pid_exists(worker) for worker in begun)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert dict(engine.run(Counted(), [(0, 0), (1, 1)], 2, "x: phase")) == {0: {"double": 0}, 1: {"double": 2}}


def test_options_that_cannot_work_are_told(tmp_path, monkeypatch):
    write_documents(tmp_path / "in.jsonl", [{"id": "a", "text": "t"}])
    with pytest.raises(UserError, match="takes KEY=VALUE"):
        make_engine("ray", ["address"], tmp_path)
    with pytest.raises(UserError, match="takes address, num_cpus and max_retries, not adress"):
        make_engine("ray", ["adress=x"], tmp_path)
    with pytest.raises(UserError, match="take numbers"):
        make_engine("ray", ["num_cpus=many"], tmp_path)
    with pytest.raises(UserError, match="--engine local takes no --engine-option; remove partition"):
        make_engine("local", ["partition=x"], tmp_path)
    monkeypatch.setenv("PATH", "")
    stage = Stage("x", tmp_path / "in.jsonl", tmp_path / "out", {}, engine=make_engine("slurm", [], tmp_path / "s"))
    with pytest.raises(UserError, match="found no sbatch"):
        stage.run_tasks("phase", print, [1])
