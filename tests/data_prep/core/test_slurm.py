"""The queue that Slurm's jobs share, and the driver that watches them, with a cluster that is made up."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.core import slurm
from data_prep.core.engines import make_engine
from data_prep.core.slurm import Jobs, SlurmEngine
from data_prep.core.slurm_worker import claims
from data_prep.core.stage import Stage, for_documents
from data_prep.core.task_queue import TaskQueue
from data_prep.documents.reading import document_files, read_documents, write_documents
from recipe.base.errors import UserError
from tests.data_prep.core import slurm_tasks
from tests.data_prep.core.test_inputs import changed, copy_part, document

pytestmark = pytest.mark.xdist_group("engines")


def double(task: int, number: int) -> dict[str, Any]:
    return {"double": 2 * task}


def nothing_happens(worker: str, number: int) -> str:
    return "done"


class MadeUpCluster:
    """Slurm as the engine sees it. Each sleep of the driver lets every running job do one thing.

    Args:
        fate: asked with a worker's name and a task that it has taken: it gets done, the job "ends" or is "requeued" instead, or
            is "slow" and asked again the next time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fate: Callable[[str, int], str] = nothing_happens):
        self.steps: dict[str, Iterator[None]] = {}  # of each job that is there
        self.ran: list[tuple[str, int]] = []
        self.submitted: list[int] = []
        self.cancelled: list[tuple[str, ...]] = []
        self.answers = True
        self.state = "RUNNING None"  # of every job that is there
        self._fate, self._clock = fate, 0.0
        cluster = self

        class MadeUpJobs(Jobs):
            def submit(self, jobs: int) -> None:
                (self.folder / slurm.JOB_NAME).write_text(self.name)
                cluster.submit(TaskQueue(self.folder), jobs)

            def states(self) -> dict[str, str] | None:
                return dict.fromkeys(cluster.steps, cluster.state) if cluster.answers else None

            def cancel(self, *options: str) -> None:
                cluster.cancelled.append(options)
                if not options:
                    cluster.steps.clear()

        monkeypatch.setattr(slurm, "Jobs", MadeUpJobs)
        monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
        # Of this module alone: by a clock that stands still, threads of pools that other tests have left would wait for ever.
        monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=self.step, monotonic=lambda: self._clock))

    def submit(self, queue: TaskQueue, jobs: int) -> None:
        self.submitted.append(jobs)
        for index in range(jobs):
            job = f"{len(self.submitted)}_{index}"
            self.steps[job] = self._job(queue, job, index, jobs)

    def _job(self, queue: TaskQueue, job: str, index: int, jobs: int, restarts: int = 0) -> Iterator[None]:
        worker = f"{job}.{restarts}"
        queue.start(worker)
        function, tasks = pickle.loads(pickle.loads((queue.folder / "work.pickle").read_bytes())[1])
        for number in claims(queue, [n for n, _ in tasks], worker, index, jobs):
            while (fate := self._fate(worker, number)) == "slow":
                yield
            if fate == "requeued":
                self.steps[job] = self._job(queue, job, index, jobs, restarts + 1)
                return
            if fate == "ends":
                break
            self.ran.append((job, number))
            queue.put(number, ("result", function(dict(tasks)[number], number)), worker)
            yield
        del self.steps[job]

    def step(self, seconds: float) -> None:
        self._clock += max(seconds, 0.1)
        for steps in list(self.steps.values()):
            next(steps, None)

    @property
    def numbers(self) -> list[int]:
        return sorted(number for _, number in self.ran)


def run(folder: Path, tasks: int, workers: int) -> dict[int, Any]:
    numbered = [(number, number) for number in range(tasks)]
    return dict(SlurmEngine({}, folder).run(double, numbered, workers, "x: phase"))


def test_every_task_is_done_once_and_the_queue_goes(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch)
    assert run(tmp_path, 23, 4) == {n: {"double": 2 * n} for n in range(23)}
    assert cluster.numbers == list(range(23))
    assert cluster.submitted == [4]
    assert cluster.cancelled == [("--state=PENDING",)]
    assert list(tmp_path.iterdir()) == []


def test_what_an_ended_job_had_goes_to_others(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, number: "ends" if worker == "1_0.0" and number == 8 else "done")
    assert len(run(tmp_path, 60, 4)) == 60
    assert cluster.numbers == list(range(60))
    assert 8 in [number for job, number in cluster.ran if job != "1_0"]
    assert cluster.submitted == [4]


def test_a_slow_job_costs_only_the_task_that_it_holds(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch)
    cluster._fate = lambda worker, n: "slow" if worker == "1_0.0" and len(cluster.ran) < 59 else "done"
    assert len(run(tmp_path, 60, 4)) == 60
    assert cluster.numbers == list(range(60)), "a task ran twice, or never"
    assert [number for job, number in cluster.ran if job == "1_0"] == [0]


def test_what_a_requeued_job_had_is_released_though_the_job_is_there_again(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, n: "requeued" if worker == "1_0.0" and n == 2 else "done")
    assert len(run(tmp_path, 40, 1)) == 40
    assert cluster.numbers == list(range(40))
    assert cluster.submitted == [1]


def test_nothing_is_released_while_the_controller_does_not_answer(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch)
    asked = 0

    def fate(worker: str, number: int) -> str:
        nonlocal asked
        asked += 1
        cluster.answers = asked > 60
        return "done" if cluster.answers else "slow"

    cluster._fate = fate
    assert len(run(tmp_path, 10, 2)) == 10
    assert cluster.numbers == list(range(10))
    assert cluster.submitted == [2]


def test_lost_jobs_are_replaced(tmp_path, monkeypatch):
    """Each of the first eight jobs ends at its third task."""
    done: Counter[str] = Counter()

    def fate(worker: str, number: int) -> str:
        done[worker] += 1
        return "ends" if worker < "3" and done[worker] > 2 else "done"

    cluster = MadeUpCluster(monkeypatch, fate)
    assert len(run(tmp_path, 50, 4)) == 50
    assert cluster.numbers == list(range(50))
    assert cluster.submitted == [4, 4, 4]


def test_some_lost_jobs_are_replaced_while_others_work(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, n: "ends" if worker in ("1_0.0", "1_1.0") else "done")
    assert len(run(tmp_path, 400, 3)) == 400
    assert cluster.submitted[:2] == [3, 2]


def test_a_task_that_ends_every_job_is_told(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, number: "ends" if number == 5 else "done")
    with pytest.raises(UserError, match=r"3 jobs of x: phase ended while they worked on task 5, .*memory \(mem=\) or"):
        run(tmp_path, 30, 3)
    assert cluster.cancelled == [()]
    assert cluster.numbers == [n for n in range(30) if n != 5]


def test_jobs_that_end_before_they_take_a_task_are_told_with_their_last_words(tmp_path, monkeypatch):
    class Unstartable(MadeUpCluster):
        def submit(self, queue: TaskQueue, jobs: int) -> None:
            self.submitted.append(jobs)
            (queue.folder / "logs").mkdir(exist_ok=True)
            (queue.folder / "logs" / f"{len(self.submitted)}_0.log").write_text("No module named 'xxhash'\n")

    cluster = Unstartable(monkeypatch)
    with pytest.raises(UserError, match=r"3 job arrays of x: phase in a row .* said: No module named 'xxhash'; see"):
        run(tmp_path, 30, 3)
    assert cluster.submitted == [3, 3, 3]


def test_results_that_a_killed_driver_did_not_read_are_used_and_its_jobs_end_first(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch)
    killed = SlurmEngine({}, tmp_path).run(double, [(n, n) for n in range(9)], 2, "x: phase")
    next(killed)
    for _ in range(2):
        cluster.step(0)
    done = len(cluster.ran)
    assert done < 9
    assert cluster.steps
    assert run(tmp_path, 9, 2) == {n: {"double": 2 * n} for n in range(9)}
    assert cluster.numbers == list(range(9))
    assert cluster.submitted == [2, 2]
    assert cluster.cancelled[0] == ()  # before any was submitted
    killed.close()


def three_files(folder: Path) -> list[Path]:
    for name in "abc":
        write_documents(folder / f"{name}.jsonl", [document(name)])
    return sorted(folder.iterdir())


def slurm_stage(source: Path, output: Path) -> Stage:
    return Stage("copy", source, output, {}, workers=3, engine=SlurmEngine({}, output / ".engine"))


class Killed(BaseException):
    pass


def killed_after_two_steps(cluster: MadeUpCluster, monkeypatch: pytest.MonkeyPatch, driver: Callable[[], Any]) -> None:
    """The driver is gone when its jobs are done, before it has read what they have made."""

    def step(seconds: float) -> None:
        cluster.step(seconds)
        cluster.step(seconds)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(slurm.time, "sleep", step)  # the made-up one
        patched.setattr(slurm.Jobs, "cancel", lambda self, *options: None)
        with pytest.raises(Killed):
            driver()
    gc.collect()  # the lock of the stage


def copied(stage: Stage) -> list[str]:
    """The texts of the output of a stage that copies."""
    work = for_documents(stage, work=partial(copy_part, output=stage.output))
    results = stage.run_tasks("documents", work, stage.parts)
    stage.finish(counts={"in": 3, "out": 3}, written=results)
    stage._lock.close()
    return [d["text"] for f in document_files(stage.output) for d in read_documents(f, print)]


@pytest.mark.parametrize("engine", ["slurm", "local"])
def test_unread_results_of_a_killed_driver_are_not_those_of_an_input_that_changed_since(engine, tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch)
    _, file, _ = three_files(tmp_path / "in")
    killed_after_two_steps(cluster, monkeypatch, lambda: copied(slurm_stage(tmp_path / "in", tmp_path / "out")))
    assert len(list(tmp_path.glob("out/.engine/*/results/*"))) == 3
    changed(file)
    make = slurm_stage if engine == "slurm" else lambda *folders: Stage("copy", *folders, {})
    assert copied(make(tmp_path / "in", tmp_path / "out")) == ["some text", "same text", "some text"]


def test_a_comparison_that_was_killed_says_nothing_of_other_files(tmp_path, monkeypatch):
    first, _, last = three_files(tmp_path / "in")
    copied(Stage("copy", tmp_path / "in", tmp_path / "out", {}))
    cluster = MadeUpCluster(monkeypatch)
    before = first.stat().st_mtime_ns
    os.utime(first, ns=(before, before + 10**9))
    for file in (first, last):  # several, since one task needs no jobs
        os.utime(file)
    killed_after_two_steps(cluster, monkeypatch, lambda: slurm_stage(tmp_path / "in", tmp_path / "out"))
    os.utime(first, ns=(before, before))
    changed(last)
    with pytest.raises(UserError, match=r"c.jsonl changed since this stage read it"):
        slurm_stage(tmp_path / "in", tmp_path / "out")


def test_jobs_of_a_killed_driver_end_before_a_run_with_another_engine(tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, number: "slow")
    three_files(tmp_path / "in")
    killed_after_two_steps(cluster, monkeypatch, lambda: copied(slurm_stage(tmp_path / "in", tmp_path / "out")))
    assert cluster.steps
    record = tmp_path / "out/.engine/copy-documents" / slurm.JOB_NAME
    name = record.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(slurm.shutil, "which", lambda name: None)
        with pytest.raises(UserError, match=f"no squeue and scancel to end them; run scancel --name={name} on a login"):
            Stage("copy", tmp_path / "in", tmp_path / "out", {})
    gc.collect()
    assert len(copied(Stage("copy", tmp_path / "in", tmp_path / "out", {}))) == 3
    assert cluster.cancelled == [()]
    assert not cluster.steps


def test_the_users_environment_hides_no_jobs_from_the_driver(monkeypatch):
    hiding = (
        "SQUEUE_STATES",
        "SQUEUE_FORMAT2",
        "SCANCEL_INTERACTIVE",
        "SBATCH_WAIT",
        "SBATCH_CLUSTERS",
        "SLURM_CLUSTERS",
    )
    for name in (*hiding, "SBATCH_PARTITION", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    environment = slurm._environment()
    assert not set(hiding) & set(environment)
    assert environment["SBATCH_PARTITION"] == environment["SLURM_CONF"] == "x"


@pytest.mark.parametrize("reason", list(slurm.STUCK))
def test_jobs_that_can_never_start_are_told_and_end(reason, tmp_path, monkeypatch):
    cluster = MadeUpCluster(monkeypatch, lambda worker, number: "slow")
    cluster.state = f"PENDING {reason}"
    with pytest.raises(UserError, match=f"no job of x: phase can start, since Slurm says {reason}; .* run again"):
        run(tmp_path, 9, 2)
    assert cluster.cancelled == [()]


def test_why_jobs_wait_is_told_once_and_waited_for(tmp_path, monkeypatch, capsys):
    def fate(worker: str, number: int) -> str:
        if cluster._clock > 300:
            cluster.state = "RUNNING None"
        return "slow" if cluster._clock <= 300 else "done"

    cluster = MadeUpCluster(monkeypatch, fate)
    cluster.state = "PENDING Resources"
    assert len(run(tmp_path, 9, 2)) == 9
    assert capsys.readouterr().err == "x: phase: 2 jobs wait: Resources\n"


@pytest.mark.parametrize("missing", ["sbatch", "squeue", "scancel"])
def test_a_command_that_is_missing_is_told(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match=f"found no {missing}; run it on a login node"):
        run(tmp_path, 2, 2)


def test_a_command_that_hangs_is_no_answer(tmp_path, monkeypatch):
    for name in ("squeue", "scancel", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 30\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "ANSWER_S", 0.1)
    jobs = Jobs("x", [], tmp_path)
    assert jobs.states() is None
    jobs.cancel()
    with pytest.raises(UserError, match="sbatch did not answer in 0 s; run again when"):
        jobs.submit(1)


def test_options_go_to_sbatch_but_for_those_of_the_engine(tmp_path):
    assert slurm.sbatch_options({"cpus_per_task": "2", "mem": "4G", "exclusive": ""}) == [
        "--cpus-per-task=2",
        "--mem=4G",
        "--exclusive",
    ]
    for key in ("array", "output", "job_name", "job-name", "wrap", "parsable", "arr", "wait"):
        with pytest.raises(UserError, match=f"sets {key} itself"):
            make_engine("slurm", [f"{key}=x"], tmp_path)
    for key in ("M", "clusters", "cluster"):
        with pytest.raises(UserError, match=f"of its own cluster alone; remove {key} from"):
            make_engine("slurm", [f"{key}=x"], tmp_path)
    assert slurm.sbatch_options({"cluster_constraint": "x"}) == ["--cluster-constraint=x"]


def engine_run(engine: Any, function: Any, tasks: list[Any]) -> list[dict[str, Any]]:
    return [result for _, result in sorted(engine.run(function, list(enumerate(tasks)), 2, "x: phase"))]


def test_a_real_sbatch_gets_the_options_and_refuses_a_wrong_one(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    for option, message in (("parttion=cpu", "unrecognized option '--parttion=cpu'"), ("partition=x", "partition")):
        with pytest.raises(UserError, match=f"sbatch refused the jobs of --engine slurm .*{message}"):
            engine_run(make_engine("slurm", [option], tmp_path), slurm_tasks.my_time_limit, [0])
    engine = make_engine("slurm", ["partition=cpu", "time=7"], tmp_path)
    assert engine_run(engine, slurm_tasks.my_time_limit, [0]) == [{"limit": "7:00"}]


def test_a_job_has_the_partitions_limit_where_none_is_given(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("SLURM_TIMELIMIT", "3")  # as in a job, from which the driver may be run
    assert engine_run(make_engine("slurm", [], tmp_path), slurm_tasks.my_time_limit, [0]) == [{"limit": "UNLIMITED"}]


def test_what_a_cancelled_job_had_is_done_by_the_others(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    victim = tmp_path / "victim"
    results = engine_run(make_engine("slurm", [], tmp_path), slurm_tasks.cancelled_once, [victim] * 8)
    assert [result["number"] for result in results] == list(range(8))
    assert results[0]["job"] != victim.read_text()
