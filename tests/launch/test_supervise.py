"""The supervisor beside others, while a run starts, and when it is stopped; its launcher is a stand-in."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from launch import supervise as module
from launch.cluster.process_groups import processes_of, signal_group
from launch.supervise import Supervisor, end_group
from recipe.base.errors import UserError
from recipe.base.files import append_json, write_json
from recipe.base.ranks import RESTART, STOP_SIGNALS
from recipe.run.checkpoint_files import SCHEMA, VERSION, topology
from recipe.run.folder import RunFolder
from recipe.run.heartbeats import Heartbeat, write_heartbeat
from recipe.run.kept_budget import KeptBudget
from recipe.training.stopping import StopRequest
from tests.conftest import ROOT
from tests.patience import PATIENCE_S
from tests.recipe.run.test_locks import HOLD

# The supervisor with a launch that needs no data, and a launcher of which each test says what it does.
SUPERVISOR = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from launch.cluster import allocation
from launch import supervise

run_dir, launcher, checks_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def check_job(*_, **__):
    print("checking", flush=True)
    time.sleep(checks_s)
    parts = {"expert_parallel": SimpleNamespace(autoep_size=1), "zero_optimization": SimpleNamespace(stage=3)}
    return SimpleNamespace(run=SimpleNamespace(run_dir=run_dir), ds=SimpleNamespace(world_size=2, **parts), phases=[SimpleNamespace(ds_raw={"train_micro_batch_size_per_gpu": 2})])
supervise.check_job = check_job
supervise.check_run_folder = lambda *_, **__: []  # that is of a real launch
allocation.ThisHost.command = lambda self, ranks: [sys.executable, "-c", launcher, str(run_dir)]
sys.exit(supervise.main(["--num_gpus", "2", "--config", "c", "--deepspeed_config", "d", *sys.argv[4:]]))
"""
READY = "import pathlib, signal, sys, time; run = pathlib.Path(sys.argv[1]); "
SLEEPS = READY + "(run / 'launched').touch(); time.sleep(60)"
DEAF = READY + "signal.signal(15, signal.SIG_IGN); (run / 'launched').touch(); time.sleep(60)"
# Rank 0 of a start that trains until it is asked to stop.
TRAINS = READY + (
    "import json; f = open(run / 'attempts.jsonl', 'a'); f.write('{}\\n'); f.close(); "
    "say = lambda **e: (run / 'events.jsonl').open('a').write(json.dumps({'attempt': 1, 'time': 1.0, **e}) + '\\n'); "
    "say(event='started'); (run / 'launched').touch(); "
    "[time.sleep(0.05) for _ in iter(lambda: (run / 'stop').exists(), True)]; say(event='stopped', why='file', message='s'); "
    "sys.exit(0)"
)


def supervise(run_dir: Path, launcher: str, *words: object, checks_s: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, run_dir, launcher, str(checks_s), *map(str, words)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("lock", ["supervisor.lock", "lock"], ids=["of a supervisor", "of a bare deepspeed run"])
def test_a_run_that_goes_on_is_not_touched_by_a_second_start(lock, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("stop", "hostfile", "deepspeed_env", "events.jsonl", "supervisor.lock", "lock"):
        (run / name).write_text("of the first\n")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run / lock], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    before = tree(run)
    output, errors = (second := supervise(run, SLEEPS)).communicate(timeout=PATIENCE_S)
    assert second.returncode == 2
    assert output == "checking\n"
    assert errors.startswith(f"error: {run} is in use by process {holder.pid} on ")
    assert errors.count("\n") == 1
    assert tree(run) == before
    holder.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_the_inputs_are_checked_ends_it_at_once(number, tmp_path):
    process = supervise(tmp_path / "run", SLEEPS, checks_s=60)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == RESTART
    assert output == f"supervisor: {number.name}: stopped before anything was started\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", [SLEEPS, DEAF], ids=["at once", "with the second signal"])
def test_a_signal_while_the_ranks_start_ends_them_with_75(launcher, tmp_path):
    process = supervise(tmp_path, launcher)
    until(tmp_path / "launched")
    process.send_signal(signal.SIGUSR2)
    if launcher == DEAF:
        until(tmp_path / "stop")
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == RESTART
    assert not (tmp_path / "stop").exists()


def test_a_file_or_the_time_limit_while_the_ranks_start_ends_them_with_75(tmp_path):
    process = supervise(tmp_path, SLEEPS)
    until(tmp_path / "launched")
    (tmp_path / "stop").touch()
    assert process.wait(20) == RESTART
    assert not (tmp_path / "stop").exists()
    assert supervise(tmp_path, SLEEPS, "--time-limit", 6).wait(30) == RESTART


def test_a_stop_between_two_starts_ends_it_with_75(tmp_path):
    process = supervise(tmp_path, READY + "sys.exit(1)", "--backoff", 60)
    until(tmp_path / "events.jsonl")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == RESTART
    assert "supervisor: SIGTERM: stopping; no ranks run now\n" in output


def test_ranks_that_train_are_asked_and_not_ended(tmp_path):
    process = supervise(tmp_path, TRAINS)
    until(tmp_path / "launched")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == RESTART
    assert (
        "supervisor: SIGTERM: the ranks finish their step, save and stop; a second signal ends them at once" in output
    )
    assert "supervisor: stopped as asked, before the end of the schedule; the same command continues it from" in output
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "stopped"]
    assert not (tmp_path / "stop").exists()


def test_ranks_that_refuse_to_start_are_no_attempt_that_ended(tmp_path):
    process = supervise(tmp_path, READY + "sys.exit(2)")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "not restarted: the ranks refused to start" in errors
    assert not (tmp_path / "events.jsonl").exists()


def test_another_zero_stage_is_refused_before_the_checkpoint_is_written_anew(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step_00000002"
    of = topology(world_size=2, autoep_size=1, zero_stage=1)
    write_json(checkpoint / "manifest.json", {"schema": SCHEMA, "version": VERSION, "topology": of})
    process = supervise(tmp_path, SLEEPS)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "do not change the ZeRO stage; use a ds_config of the same stage" in errors
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert not (tmp_path / "launched").exists()


def test_a_group_that_is_gone_is_let_be(monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    signal_group(process.pid, signal.SIGTERM)
    # Gone between the look and the signal.
    seen = iter([[process.pid], []])
    monkeypatch.setattr("launch.supervise.processes_of", lambda group: next(seen, []))
    end_group(process.pid, 1.0)


DS_RAW = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3, "bf16": {"enabled": True}}
ARGUMENTS = ["--num_gpus", "2", "--config", "c", "--deepspeed_config", "d", "--grace", "1"]


@pytest.fixture
def checked(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Inputs of a run that need no data, for a supervisor in this process; how they are checked."""
    parts = {"expert_parallel": SimpleNamespace(autoep_size=1), "zero_optimization": SimpleNamespace(stage=3)}
    ds = SimpleNamespace(world_size=2, **parts)
    job = SimpleNamespace(
        run=SimpleNamespace(run_dir=tmp_path / "run"),
        ds=ds,
        phases=[SimpleNamespace(number=0, ds_raw=dict(DS_RAW))],
        config=SimpleNamespace(phases=[]),
    )
    job.at = lambda number: SimpleNamespace(number=number, ds_raw=job.phases[number].ds_raw)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "check_job", lambda *_, **how: calls.append(how) or job)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return calls


@pytest.fixture
def supervisor(checked) -> Supervisor:
    """One in this process, that a test asks by its methods and not by signals."""
    return Supervisor(module.parse(ARGUMENTS))


class Launches:
    """A launcher that only says how each attempt ends: each of `ends` is its exit code and what it does before."""

    def __init__(self, supervisor: Supervisor, *ends: tuple[int, Callable[[], object]]):
        self.words: list[list[str]] = []
        self.supervisor, self.ends = supervisor, ends
        supervisor._run_group = self.run  # type: ignore[method-assign]

    def run(self, words: list[str]) -> int:
        self.words.append(words)
        assert len(self.words) < 20, "started for ever"
        code, act = self.ends[min(len(self.words), len(self.ends)) - 1]
        act()
        return code

    def of(self, option: str) -> list[str]:
        return [words[words.index(option) + 1] for words in self.words]


def in_process(checked: object, *words: str) -> Supervisor:
    return Supervisor(module.parse([*ARGUMENTS, "--backoff", "0", *words]))


def events(supervisor: Supervisor) -> list[dict[str, Any]]:
    path = supervisor.run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def begin(supervisor: Supervisor, **event: object) -> None:
    """As rank 0 of an attempt does: say that it began, and what became of it."""
    append_json(supervisor.run_dir / "attempts.jsonl", {})
    append_json(supervisor.run_dir / "events.jsonl", {"attempt": supervisor._attempts(), "time": time.time(), **event})


def save(supervisor: Supervisor, step: int, **train_state: int) -> None:
    topology_here = topology(world_size=2, autoep_size=1, zero_stage=3)
    path = supervisor.run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json"
    facts = {"schema": SCHEMA, "version": VERSION, "topology": topology_here, "train_state": train_state}
    write_json(path, facts)


def nothing() -> None:
    pass


@pytest.mark.parametrize("stalls", [0, 2])
def test_a_run_that_dies_at_each_start_is_given_up(stalls, checked):
    supervisor = in_process(checked, "--max-stalls", str(stalls))
    launches = Launches(supervisor, (1, nothing))
    with pytest.raises(UserError, match=f"{stalls + 1} starts in a row ended without a new checkpoint, the last: the"):
        supervisor.run()
    assert len(launches.words) == stalls + 1
    assert [e["event"] for e in events(supervisor)] == ["attempt_ended"] * (stalls + 1)


def test_a_checkpoint_starts_the_count_of_stalls_again(checked):
    supervisor = in_process(checked, "--max-stalls", "1")
    launches = Launches(supervisor, (1, nothing), (1, lambda: save(supervisor, 2)), (1, nothing))
    with pytest.raises(UserError, match="2 starts in a row"):
        supervisor.run()
    assert len(launches.words) == 4  # a stall, an advance, two stalls


def test_an_attempt_ends_at_no_step_before_its_newest_checkpoint(checked):
    supervisor = in_process(checked)

    def save_and_die(step: int, beat: int) -> None:
        begin(supervisor, event="started")
        save(supervisor, step)
        (supervisor.run_dir / "heartbeats").mkdir(exist_ok=True)
        beat_of = Heartbeat(0, "h", 1, supervisor._attempts(), beat, "forward", 1, 1)
        write_heartbeat(supervisor.run_dir / "heartbeats", beat_of)

    Launches(
        supervisor,
        (1, lambda: save_and_die(4, beat=3)), (1, lambda: save_and_die(8, beat=12)), (0, lambda: begin(supervisor, event="finished")),
    )  # fmt: skip
    assert supervisor.run() == 0
    ends = [e for e in events(supervisor) if e["event"] == "attempt_ended"]
    assert [(e["step"], e["lost_steps"]) for e in ends] == [(4, 0), (11, 3)]


def test_after_a_spike_the_next_start_is_said_to_go_on_before_it(checked, capsys):
    supervisor = in_process(checked)

    def spike() -> None:
        begin(supervisor, event="rewind", message="a spike")
        for step in (4, 8):
            save(supervisor, step, rewinds=0)
        RunFolder(supervisor.run_dir, 1).order_rewind(1, before_step=6, phase=0, sequences=0, message="a spike")

    Launches(supervisor, (RESTART, spike), (0, lambda: begin(supervisor, event="finished")))
    assert supervisor.run() == 0
    told = capsys.readouterr().out
    assert "supervisor: attempt 1 ended at step 8 with exit code 75: a spike\n" in told
    assert "supervisor: attempt 2 starts now, from the checkpoint of step 4\n" in told
    assert told.count("from the checkpoint of step 4\n") == 2


def test_a_hostfile_is_refused_together_with_the_inputs(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> NoReturn:
        raise UserError("c: no such key")

    monkeypatch.setattr(module, "check_job", refused)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(UserError, match=r"hosts cannot be read .*\nc: no such key"):
        Supervisor(module.parse(["--hostfile", str(tmp_path / "hosts"), *ARGUMENTS[2:]]))


def test_a_second_attempt_gets_what_is_left_of_the_time_limit(checked):
    supervisor = in_process(checked, "--time-limit", "1000")

    def take_400_s() -> None:
        supervisor.began -= 400

    launches = Launches(supervisor, (1, take_400_s), (0, lambda: begin(supervisor, event="finished")))
    assert supervisor.run() == 0
    first, second = map(float, launches.of("--time-limit"))
    assert 900 < first < 1000
    assert first - 500 < second <= first - 400


def test_out_of_memory_halves_the_micro_batch_of_the_next_attempt(checked):
    supervisor = in_process(checked, "--step-down-on-oom")

    def run_out_of_memory() -> None:
        begin(supervisor, event="started")
        RunFolder(supervisor.run_dir, supervisor._attempts()).record_failure(
            "out_of_memory", "no memory", rank=1, host="h"
        )

    launches = Launches(supervisor, (1, run_out_of_memory), (0, lambda: begin(supervisor, event="finished")))
    assert supervisor.run() == 0
    assert launches.of("--deepspeed_config") == ["d", str(supervisor.run_dir / "ds_config.stepped_down.json")]
    stepped_down = json.loads((supervisor.run_dir / "ds_config.stepped_down.json").read_text())
    assert stepped_down == {**DS_RAW, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 6}


def test_out_of_memory_lowers_what_is_kept_before_it_halves_the_micro_batch(checked, capsys, monkeypatch):
    supervisor = in_process(checked, "--step-down-on-oom", "--max-stalls", "1")
    budgets = iter([KeptBudget(8.0, 8.0, 4.0), KeptBudget(8.0, 4.0, 0.0), KeptBudget(8.0, 0.0, 0.0)])
    monkeypatch.setattr(module, "next_budgets", lambda run_dir, job: [next(budgets)])

    def run_out_of_memory() -> None:
        begin(supervisor, event="started")
        folder = RunFolder(supervisor.run_dir, supervisor._attempts())
        folder.record_failure("out_of_memory", "no memory", rank=1, host="h")

    fails, ends = (1, run_out_of_memory), (0, lambda: begin(supervisor, event="finished"))
    launches = Launches(supervisor, fails, fails, fails, ends)
    assert supervisor.run() == 0
    assert [Path(path).name for path in launches.of("--deepspeed_config")] == [
        "d",
        "d",
        "d",
        "ds_config.stepped_down.json",
    ]
    told = capsys.readouterr().out
    for gib in ("4", "0"):
        assert told.count(f"supervisor: the next attempt keeps at most {gib} GiB of recomputed layers' results") == 1


def test_a_host_that_fails_twice_gives_way_to_a_spare(checked, tmp_path, monkeypatch, capsys):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=1\nb slots=1\nc slots=1\n")
    words = ["--hostfile", str(hostfile), *ARGUMENTS[2:], "--backoff", "0", "--max-stalls", "9"]
    monkeypatch.setattr("launch.cluster.allocation.Hosts.lost", lambda self, hosts: [])
    monkeypatch.setattr("launch.cluster.allocation.Hosts.check_programs", lambda self: None)
    monkeypatch.setenv("DS_ENV_FILE", "")  # the command sets it
    supervisor = Supervisor(module.parse(words))

    def rank_1_fails() -> None:
        begin(supervisor, event="started")
        RunFolder(supervisor.run_dir, supervisor._attempts()).record_failure("error", "broken", rank=1, host="b")

    used: list[str] = []
    look = lambda: used.append(",".join(supervisor.allocation.chosen))  # noqa: E731
    end = lambda: begin(supervisor, event="finished")  # noqa: E731
    Launches(
        supervisor,
        (1, lambda: [look(), rank_1_fails()]), (1, lambda: [look(), rank_1_fails()]), (0, lambda: [look(), end()]),
    )  # fmt: skip
    assert supervisor.run() == 0
    assert used == ["a,b", "a,b", "a,c"]
    ends = [e for e in events(supervisor) if e["event"] == "attempt_ended"]
    assert [(e["kind"], e["rank"], e["host"], e["excluded_hosts"]) for e in ends] == [
        ("error", 1, "b", []), ("error", 1, "b", ["b"]),
    ]  # fmt: skip
    told = [line.removeprefix("supervisor: ") for line in capsys.readouterr().out.splitlines()]
    assert [line for line in told if not line.startswith("command: ")][:8] == [
        "attempt 1 starts 2 ranks on 2 hosts (a, b), from the beginning, since there is no checkpoint",
        "attempt 1 ended with exit code 1: broken",
        "host b is left out when it fails once more",
        "attempt 2 starts now, from the beginning, since there is no checkpoint",
        "attempt 2 starts 2 ranks on 2 hosts (a, b), from the beginning, since there is no checkpoint",
        "attempt 2 ended with exit code 1: broken",
        "host b is left out from now on, since it failed twice",
        "attempt 3 starts now, from the beginning, since there is no checkpoint",
    ]
    assert told[-1].startswith("the schedule is done, ")


def once_launched(supervisor: Supervisor, act: Callable[[], object]) -> None:
    """Act, from beside it, as soon as the supervisor's launcher runs."""

    def wait_and_act() -> None:
        until(supervisor.run_dir / "launched")
        act()

    threading.Thread(target=wait_and_act, daemon=True).start()


def refuse(monkeypatch, folder: Path, number: int, *methods: str) -> None:
    """From now on methods of the paths in a folder fail as on a file system that does not answer."""
    for name in methods:
        answer = getattr(Path, name)

        def method(path: Path, *args: Any, answer: Callable = answer, **more: Any) -> Any:
            if path.is_relative_to(folder):
                raise OSError(number, os.strerror(number))
            return answer(path, *args, **more)

        monkeypatch.setattr(Path, name, method)


def command(launcher: str, run_dir: Path) -> list[str]:
    return [sys.executable, "-c", launcher, str(run_dir)]


ANSWERS = [errno.ESTALE, errno.EIO, errno.EACCES]


@pytest.mark.parametrize("number", ANSWERS)
def test_a_file_system_that_does_not_answer_for_a_while_ends_no_run(number, supervisor, monkeypatch):
    refuse(monkeypatch, supervisor.run_dir, number, "exists", "unlink")
    monkeypatch.setattr(module, "POLL_S", 0.01)
    assert supervisor._run_group([sys.executable, "-c", "import sys, time; time.sleep(0.2); sys.exit(7)"]) == 7
    assert not supervisor._stop_is_asked({})
    monkeypatch.setattr(supervisor, "_restart_until_the_end", lambda: 0)
    assert supervisor.run() == 0


@pytest.mark.parametrize("number", ANSWERS)
def test_nor_does_it_when_a_rank_looks_for_the_file(number, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    request = StopRequest(tmp_path / "stop", None)
    refuse(monkeypatch, tmp_path, number, "exists", "unlink")
    assert request.reason() is None
    request.answered()


def test_a_signal_on_a_full_disk_still_ends_the_ranks(supervisor, monkeypatch):
    refuse(monkeypatch, supervisor.run_dir, errno.ENOSPC, "touch")
    once_launched(supervisor, lambda: supervisor._asked(signal.SIGINT, None))
    sleeps = READY + "open(run / 'launched', 'w').close(); time.sleep(60)"
    assert supervisor._run_group(command(sleeps, supervisor.run_dir)) == -signal.SIGTERM


def test_no_rank_outlives_a_supervisor_that_fails(supervisor, monkeypatch):
    groups: list[int] = []

    def fail() -> NoReturn:
        groups.append(supervisor.group)
        raise KeyError("a defect")

    monkeypatch.setattr(supervisor, "_look_for_a_stop", fail)
    with pytest.raises(KeyError):
        supervisor._run_group(command(SLEEPS, supervisor.run_dir))
    assert processes_of(groups[0]) == []


def test_a_folder_that_the_ranks_would_refuse_is_refused_before_its_checkpoint_is_written_anew(checked, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    of = topology(world_size=8, autoep_size=1, zero_stage=3)
    write_json(checkpoint / "manifest.json", {"schema": SCHEMA, "version": VERSION, "topology": of})
    before = tree(tmp_path)
    with pytest.raises(UserError, match="no record of the run that saved it"):
        Supervisor(module.parse(ARGUMENTS))
    assert tree(tmp_path) == before


def test_a_port_of_the_launching_host_is_not_the_runs(supervisor, checked):
    assert checked == [{"port_may_be_in_use": True}]


def test_ranks_that_take_steps_train_though_they_cannot_say_so(supervisor):
    (supervisor.run_dir / "attempts.jsonl").write_text("{}\n{}\n")
    supervisor.starts_before = 1
    folder = supervisor.run_dir / "heartbeats"
    folder.mkdir()
    for attempt, step, starting in ((1, 7, True), (2, 0, True), (2, 1, False)):
        write_heartbeat(folder, Heartbeat(0, "h", 1, attempt, step, "forward", 1, 1))
        assert supervisor._is_starting() == starting


ENDS_OTHERS = READY + (
    "signal.signal(15, lambda *_: [(run / 'others ended').touch(), sys.exit(9)]); (run / 'launched').touch(); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("remote", "launcher", "signals", "code"),
    [(True, ENDS_OTHERS, 2, 9), (True, DEAF, 2, -9), (True, DEAF, 3, -9), (False, ENDS_OTHERS, 2, -9)],
)
def test_the_second_signal_leaves_the_launcher_the_time_to_end_other_hosts(
    remote, launcher, signals, code, supervisor, monkeypatch
):
    monkeypatch.setattr(supervisor.allocation, "remote", remote)
    monkeypatch.setattr(module, "REMOTE_END_S", 0.3 if signals == 2 else 60.0)
    monkeypatch.setattr(supervisor, "_is_starting", lambda: False)
    once_launched(supervisor, lambda: [supervisor._asked(signal.SIGTERM, None) for _ in range(signals)])
    assert supervisor._run_group(command(launcher, supervisor.run_dir)) == code
    assert (supervisor.run_dir / "others ended").exists() == (code == 9)


@pytest.mark.parametrize("option", ["--backoff", "--grace"])
def test_times_to_wait_are_numbers_of_seconds(option):
    assert vars(module.parse([*ARGUMENTS, option, "0"]))[option[2:]] == 0
    for text in ("nan", "inf", "-1", "1e300", "soon"):
        with pytest.raises(SystemExit):
            module.parse([*ARGUMENTS, f"{option}={text}"])


# Slurm's commands as stand-ins that say what they are asked; `waiting` is a file where a job of the chain waits.
SLURM = {
    "scontrol": '[[ $1 == requeue ]] || exit 9; echo "requeued $2"; [[ ! -f cannot ]]',
    "squeue": '[[ "$*" == "--noheader --states=PENDING --jobs=7" ]] || exit 9; [[ ! -f silent ]] || exit 1; [[ ! -f waiting ]] || cat waiting',
    "scancel": 'echo "scancel $*"',
}


@pytest.fixture
def job_script(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the job's script alone: Slurm's commands and Python are stand-ins."""

    def run(python: str, *, array: bool = False, environment: str = "") -> subprocess.CompletedProcess[str]:
        (tmp_path / "launch").mkdir()
        (tmp_path / "launch" / "env.sh").write_text(environment)
        for name, text in {**SLURM, "python": python}.items():
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
        job |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"} if array else {}
        others = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return subprocess.run(
            ["bash", ROOT / "launch/train.slurm"],
            env={**others, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("moment", ["before the supervisor", "before it has a number", "as it starts"])
def test_a_slurm_job_that_is_told_its_limit_before_it_trains_is_requeued(moment, job_script):
    moments = {
        "before the supervisor": "kill -USR2 $$\n",
        "before it has a number": """trap '[[ $BASH_COMMAND != supervisor=* ]] || kill -USR2 $$' DEBUG\n""",
    }
    told = 'kill -USR2 "$PPID"' if moment == "as it starts" else ":"
    done = job_script(f"{told}\nexec sleep 20", environment=moments.get(moment, ""))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "requeued 7"), done.stderr


CANCELLED = "scancel --state=PENDING 7"


def test_a_job_without_an_environment_does_not_start_the_supervisor_and_ends_its_chain(job_script, tmp_path):
    (tmp_path / "waiting").write_text("7_[2-9%1] PD\n")
    done = job_script("echo started", array=True, environment="return 2")
    assert (done.returncode, "started" in done.stdout, CANCELLED in done.stdout) == (2, False, True)


def test_a_chain_of_which_slurm_does_not_tell_is_cancelled_all_the_same(job_script, tmp_path):
    (tmp_path / "silent").touch()
    assert CANCELLED in job_script("exit 2", array=True).stdout


@pytest.mark.parametrize(
    ("array", "waiting", "supervisor", "job", "log"),
    [
        (True, True, 75, 0, ["the run is not done; the next job of array 7 continues it"]),
        (True, False, 75, 75, ["the run is not done, and no job of array 7 waits; run the same sbatch command again"]),
        (True, True, 0, 0, ["the run is done; no other job of array 7 is needed", CANCELLED]),
        (True, False, 0, 0, ["the run is done"]),
        (True, True, 2, 2, ["the run cannot go on before the error above is mended", CANCELLED]),
        (True, True, 1, 1, ["the supervisor ended with code 1, which is not one of its own"]),
        (False, False, 75, 0, ["the run is not done; job 7 goes back into the queue", "requeued 7"]),
        (False, False, 0, 0, []),
        (False, False, 2, 2, []),
    ],
)
def test_a_job_ends_as_slurm_should_show_it_and_its_log_says_how_the_run_stands(
    array, waiting, supervisor, job, log, job_script, tmp_path
):
    if waiting:
        (tmp_path / "waiting").write_text("7_[2-9%1] PD\n")
    done = job_script(f"exit {supervisor}", array=array)
    assert done.returncode == job
    assert all(line in done.stdout + done.stderr for line in log)
    assert (CANCELLED in done.stdout) == (CANCELLED in log)


def test_a_job_that_slurm_does_not_requeue_says_so(job_script, tmp_path):
    (tmp_path / "cannot").touch()
    done = job_script("exit 75")
    assert done.returncode == 75
    assert "Slurm did not requeue job 7 (see above); run the same sbatch command again to continue" in done.stderr
