"""`make gpu`: what its processes find is written at once, whatever becomes of them, and the result says what is missing.

Its processes are small scripts here; the slow test at the end runs the real ones, in the small mode.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipe.base.errors import UserError
from tests.conftest import CPU, ROOT

FACTS = {"device": "NVIDIA H200", "gpus": 1, "no_gpu": None, "memory_gib": 139.8, "free_gib": 139.0, "capability": "9.0",
         "driver": "580.1", "cuda": "13.0", "nccl": "2.28.9", "packages": {"torch": "2.11.0"}, "python": "3.12.3"}  # fmt: skip
# Of a script that stands for pytest: what is in its words, and how it writes lines.
AS_PYTEST = """
import json, os, signal, subprocess, sys, time
words = sys.argv[1:]
report, left = words[0].removeprefix("--report="), words[1:]
def tell(**line):
    with open(report, "a") as handle:
        handle.write(json.dumps(line) + "\\n")
def start(name):
    tell(check=name, what=f"{name} is right", outcome="started")
def end(name, outcome="passed", why=None):
    tell(check=name, what=f"{name} is right", outcome=outcome, seconds=1.5, measured={"loss": 0.25}, why=why)
names = ["one", "two", "three"] if left == ["tests/gpu"] else left
tell(checks=names)
"""
ALL_PASS = AS_PYTEST + "for name in names: start(name); end(name)\n"
KERNELS = """
import json, sys
path = sys.argv[sys.argv.index("--output") + 1]
line = {"kernel": "matmul", "case": "square", "shape": {"M": 64}, "dtype": "bfloat16", "seconds": 0.001, "runs": 3, "flops_per_s": 7e14}
open(path, "w").write(json.dumps(line) + "\\n" + json.dumps({**line, "kernel": "launch", "flops_per_s": None}) + "\\n")
"""
# The H200's result, as train_step.py writes it.
STEP = f"""
import shutil, sys
assert int(sys.argv[sys.argv.index("--seconds") + 1]) > 0
shutil.copy({str(ROOT / "benchmarks/results/train_step_h200.json")!r}, sys.argv[sys.argv.index("--output") + 1])
"""
HANGS = "import time\nwhile True: time.sleep(1)\n"


class Command:
    """The command with scripts for its processes, and what it wrote."""

    def __init__(self, folder: Path, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch):
        self.folder, self.modules, self._patch = folder, modules, monkeypatch
        self.output = folder / "out"
        self.children(facts=f"print({json.dumps(json.dumps(FACTS))})", right=ALL_PASS, kernels=KERNELS, train_step=STEP)
        self.calibrated = lambda kernels, train_step, facts: {
            "gpu": facts["device"],
            "notes": ["nothing is known"],
            "constants": {"launch_s": {"measured": len(kernels)}},
        }
        calibration, kernels = ModuleType("benchmarks.calibration"), ModuleType("benchmarks.kernel_times")
        calibration.calibrated = lambda *given: self.calibrated(*given)
        calibration.file_of = lambda made: made["constants"]
        calibration.markdown = lambda made: f"constants: {made['constants']}"
        kernels.markdown = lambda lines: f"kernels: {', '.join(line['kernel'] for line in lines)}"
        monkeypatch.setitem(sys.modules, "benchmarks.calibration", calibration)
        monkeypatch.setitem(sys.modules, "benchmarks.kernel_times", kernels)
        monkeypatch.setattr(modules["sections"], "LEAST_S", 0.5)
        monkeypatch.setattr(modules["child"], "POLL_S", 0.02)

    def children(self, **scripts: str) -> None:
        for name, code in scripts.items():
            path = self.folder / f"{name}.py"
            path.write_text(code, encoding="utf-8")
            self._patch.setitem(self.modules["sections"].COMMANDS, name, [sys.executable, str(path)])

    def __call__(self, *words: object) -> int:
        return self.modules["gpu"].main(["--output", str(self.output), *map(str, words)])

    def results(self) -> list[dict[str, Any]]:
        files = [file for file in sorted(self.output.glob("*.json")) if not file.name.endswith(".calibration.json")]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def result(self) -> dict[str, Any]:
        (only,) = self.results()
        return only

    def clock(self, module: str, times: int = 1) -> Path:
        """A file; once a script makes it, the module's clock goes on by 1,000 s so many times."""
        clock = Clock(self.folder / "time_passes", times)
        self._patch.setattr(self.modules[module], "time", clock)
        return clock.file


class Clock:
    def __init__(self, file: Path, times: int):
        self.file, self._left, self._passed_s = file, times, 0.0

    def monotonic(self) -> float:
        if self._left and self.file.exists():
            self._left -= 1
            self._passed_s += 1000.0
        return time.monotonic() + self._passed_s

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as a script it puts the project's folder first
    from benchmarks import gpu, gpu_status
    from benchmarks.gpu_run import child, machine, result, sections, tables

    return {"gpu": gpu, "child": child, "machine": machine, "result": result, "sections": sections, "tables": tables, "gpu_status": gpu_status}  # fmt: skip


@pytest.fixture
def command(tmp_path: Path, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, modules, monkeypatch)


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    return {line["check"]: line["outcome"] for line in result["right"]}


def test_everything_is_in_one_result_in_the_order_of_its_worth(command, capsys):
    assert command() == 0
    result = command.result()
    assert list(result["spent_s"]) == ["right", "kernels", "train_step"]
    assert outcomes(result) == {"one": "passed", "two": "passed", "three": "passed"}
    assert [line["kernel"] for line in result["kernels"]] == ["matmul", "launch"]
    assert result["train_step"]["contenders"]["ours, ZeRO-1"]["tokens_per_s"] > 0
    assert result["calibration"]["gpu"] == "NVIDIA H200"
    assert result["unfinished"] == []
    assert {key: result[key] for key in ("device", "driver", "cuda", "nccl", "python", "small", "format")} == {
        "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "nccl": "2.28.9", "python": "3.12.3", "small": False, "format": 1,
    }  # fmt: skip
    assert len(result["commit"]) == 40
    (beside,) = command.output.glob("*.calibration.json")
    assert json.loads(beside.read_text()) == {"launch_s": {"measured": 2}}
    printed = capsys.readouterr()
    assert "passed          1.5 s  one is right\n" in printed.err
    assert "1 ms     700 TFLOP/s  matmul, square, M 64\n" in printed.err
    assert "75,423 tokens/s  ours, ZeRO-1\n" in printed.err
    assert "Checks: 3 passed." in printed.out
    assert "| one is right" not in printed.out  # its line has been shown
    assert "kernels: matmul" not in printed.out
    assert "Megatron-Core" not in printed.out
    assert "constants: {'launch_s': {'measured': 2}}" in printed.out
    (file,) = set(command.output.glob("*.json")) - {beside}
    assert command.modules["gpu"].main(["--table", str(file)]) == 0
    table = capsys.readouterr().out
    assert "| one is right | passed |  | loss 0.25 |" in table
    assert "kernels: matmul, launch" in table
    assert "| Megatron-Core | 12,214 |" in table


def test_ten_minutes_are_shared_as_planned_and_the_last_has_what_is_left(command, monkeypatch):
    limits = {}

    def run(words, *, limit_s, poll, **_):
        limits[Path(words[1]).stem] = limit_s
        return command.modules["child"].Ended(0)

    monkeypatch.setattr(command.modules["sections"], "run_child", run)
    command()
    assert limits["right"] == pytest.approx(240, abs=1)
    assert limits["kernels"] == pytest.approx(90, abs=1)
    assert 500 < limits["train_step"] <= 590
    limits.clear()
    command("--only", "right", "--minutes", 5)
    assert list(limits) == ["right"]
    assert 250 < limits["right"] <= 290


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV; CUDA error: an illegal memory access"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL; CUDA error: an illegal memory access"),
        ("end(name, 'failed', 'CUDA error'); os._exit(70)", "CUDA error"),  # as where a GPU takes no more work
    ],
    ids=["SIGSEGV", "SIGKILL", "GPU lost"],
)
def test_a_check_that_ends_its_process_has_failed_and_another_process_makes_the_rest(end, why, command, capsys):
    ending = f"""
for name in names:
    start(name)
    if name == "two":
        print("CUDA error: an illegal memory access", flush=True)
        {end}
    end(name)
"""
    command.children(right=AS_PYTEST + ending)
    assert command("--only", "right") == 1
    result = command.result()
    assert outcomes(result) == {"one": "passed", "two": "failed", "three": "passed"}
    assert why in result["right"][1]["why"]
    assert result["unfinished"] == []
    assert "another one makes the 1 that are left" in capsys.readouterr().err


def test_a_check_that_hangs_is_ended_with_all_its_processes_and_the_rest_is_made(command, monkeypatch):
    monkeypatch.setattr(command.modules["child"], "GRACE_S", 0.2)
    pid = command.folder / "pid"
    passes = command.clock("sections", times=3)  # one of them may come before the check is seen to have started
    command.children(
        right=AS_PYTEST
        + f"""
for name in names:
    start(name)
    if name == "one":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lives = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        open({str(pid)!r}, "w").write(str(lives.pid))
        open({str(passes)!r}, "w")
        time.sleep(600)
    end(name)
"""
    )
    assert command("--only", "right", "--minutes", 60) == 1
    result = command.result()
    assert outcomes(result) == {"one": "failed", "two": "passed", "three": "passed"}
    assert "a check had no result after 1795 s" in result["right"][0]["why"]
    stat = Path(f"/proc/{pid.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_checks_that_the_time_does_not_suffice_for_are_named_and_count_as_not_passed(command):
    passes = command.clock("child")
    command.children(
        right=AS_PYTEST
        + f"""
start("one"); end("one"); start("two")
open({str(passes)!r}, "w")
time.sleep(600)
"""
    )
    assert command("--only", "right") == 1
    result = command.result()
    assert outcomes(result) == {"one": "passed", "two": "not done"}
    not_made, not_done = result["unfinished"]
    assert re.fullmatch(r"checks not made, since the 5\d\d s for checks were over: three", not_made)
    assert re.fullmatch(r"checks not done within 5\d\d s: two", not_done)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise SystemExit('ImportError: no module named deepspeed')", "checks: none was made, exit code 1; ImportError: no module"),
        (AS_PYTEST + "start('one'); end('one')\n", "checks not made, since exit code 0: two, three"),
    ],
    ids=["none", "some"],
)  # fmt: skip
def test_checks_that_are_not_made_are_never_a_success(code, sentence, command):
    command.children(right=code)
    assert command("--only", "right") == 1
    assert sentence in " ".join(command.result()["unfinished"])


def test_a_check_that_is_not_possible_here_is_no_failure(command):
    command.children(right=AS_PYTEST + "end('one', 'not possible', 'no flash here'); end('two'); end('three')\n")
    assert command("--only", "right") == 0
    assert outcomes(command.result())["one"] == "not possible"


def test_kernels_that_hang_or_fail_leave_the_steps_their_time_and_are_named(command):
    passes = command.clock("child")
    first = KERNELS.replace("+ json.dumps({**line", "or json.dumps({**line")
    command.children(kernels=first + f"open({str(passes)!r}, 'w')\n{HANGS}")
    assert command("--only", "fast") == 0
    result = command.result()
    assert len(result["kernels"]) == 1
    assert result["train_step"] is not None
    assert result["unfinished"] == ["kernels: not all of it is measured, 90 s were left for it"]
    command.children(kernels=first + "raise RuntimeError('CUDA error: out of memory')\n")
    assert command("--only", "fast") == 1
    (again,) = [other for other in command.results() if other != result]
    assert again["unfinished"] == [
        "kernels: not all of it is measured, exit code 1; RuntimeError: CUDA error: out of memory"
    ]


def test_kernels_behind_one_that_breaks_the_gpu_are_measured_by_another_process(command):
    line = {"kernel": "grouped_gemm", "shape": {}, "seconds": 0.001}
    command.children(kernels=f"""
import json, sys
path, after = sys.argv[2], int(sys.argv[sys.argv.index("--after") + 1])
lines = [dict({line!r}, case=case) for case in ("torch", "deepspeed", "loop", "last")][after:]
if after == 0:
    lines[1] = dict(lines[1], seconds=None, failed="CUDA error: an illegal memory access")
    lines[2:] = [dict(one, seconds=None, failed="not measured: the GPU takes no more work after deepspeed") for one in lines[2:]]
open(path, "w").write("".join(json.dumps(one) + "\\n" for one in lines))
sys.exit(0 if after else 70)
""")  # fmt: skip
    assert command("--only", "fast") == 1
    result = command.result()
    assert [(one["case"], "failed" in one) for one in result["kernels"]] == [("torch", False), ("deepspeed", True), ("loop", False), ("last", False)]  # fmt: skip
    lost, broken = result["unfinished"]
    assert lost.startswith("kernels: the GPU took no more work after grouped_gemm, deepspeed; another process")
    assert broken == "kernels: grouped_gemm, deepspeed: CUDA error: an illegal memory access"


def test_what_has_no_time_left_is_named(command, monkeypatch):
    monkeypatch.setattr(command.modules["sections"], "LEAST_S", 1_000.0)
    assert command() == 1  # no check was made
    assert command.result()["unfinished"] == [
        "right: not measured, 240 s were left for it",
        "kernels: not measured, 90 s were left for it",
        *[s for s in command.result()["unfinished"] if s.startswith("train_step: not measured, 5")],
        "calibration: not made, since no kernel and no step was measured",
    ]


def test_a_signal_that_nohup_ignores_does_not_end_the_command(command):
    command.children(right=ALL_PASS + "os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.1)\n")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command("--only", "right") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_the_command_itself_costs_only_its_section(command, monkeypatch):
    def breaks(line: dict[str, Any]) -> str:
        raise KeyError("case")

    def refuse(*_: object) -> dict[str, Any]:
        raise UserError("no matmul was measured")

    monkeypatch.setattr(command.modules["sections"], "kernel_line", breaks)
    command.calibrated = refuse
    assert command() == 1
    result = command.result()
    assert len(result["right"]) == 3
    assert result["train_step"] is not None
    kernels, calibration = result["unfinished"]
    assert kernels.startswith("kernels: ended by KeyError: 'case'; see ")
    assert "Traceback" in Path(kernels.split("see ")[1]).read_text()
    assert calibration == "calibration: not made, no matmul was measured"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_what_it_has_found(number, command, capsys):
    command.children(right=AS_PYTEST + f"""
start("one"); end("one"); start("two")
while True:
    found = [f for f in os.listdir({str(command.output)!r}) if f.endswith(".json")]
    if found and '"one"' in open({str(command.output)!r} + "/" + found[0]).read():
        os.kill(os.getppid(), {int(number)})
        time.sleep(600)
    time.sleep(0.02)
""")  # fmt: skip
    inherited = signal.signal(number, signal.default_int_handler)  # a shell's background jobs inherit an ignored SIGINT
    try:
        assert command() == 130
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, inherited)
    result = command.result()
    assert outcomes(result) == {"one": "passed"}
    assert result["unfinished"] == ["interrupted in right: what follows is not measured"]
    assert "interrupted; what was measured until then is in " in capsys.readouterr().err


def test_a_second_result_does_not_replace_the_first_in_a_folder_of_the_shell(command, monkeypatch):
    monkeypatch.chdir(command.folder)
    for _ in range(2):
        assert command.modules["gpu"].main(["--output", "out", "--only", "right"]) == 0
    first = f"nvidia-h200_{command.results()[0]['date']}"
    assert sorted(file.name for file in command.output.glob("*.json")) == [f"{first}.json", f"{first}_2.json"]


def test_the_user_learns_which_gpu_is_taken_and_what_a_smaller_or_busy_one_changes(command, capsys):
    facts = {**FACTS, "gpus": 8, "memory_gib": 39.4, "free_gib": 19.4}
    command.children(facts=f"print({json.dumps(json.dumps(facts))})")
    assert command("--only", "right") == 0
    assert "1 of the 8 GPUs is used, the first" in capsys.readouterr().err
    busy, less = command.result()["unfinished"]
    assert busy.startswith("other processes had 20 GiB of this GPU")
    assert less.startswith("this GPU has 39 GiB, and the sizes are chosen for 80 GB")


def test_children_see_one_gpu_no_network_and_nothing_of_a_launcher(modules, monkeypatch, tmp_path):
    given = {
        "RANK": "3",
        "CUDA_VISIBLE_DEVICES": "2,3",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": "/mine",
        "PYTEST_ADDOPTS": "-n 8",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    env = modules["machine"].environment(tmp_path, Path("/wheels"), small=False)
    assert (env["CUDA_VISIBLE_DEVICES"], env["DS_ACCELERATOR"], env["HF_HUB_OFFLINE"]) == ("2", "cuda", "1")
    assert not {"RANK", "PYTEST_ADDOPTS"} & env.keys()
    assert env["PYTHONPATH"].split(":") == ["/wheels", str(ROOT), "/mine"]
    assert env["PATH"].startswith("/wheels/bin:")
    assert env["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    small = modules["machine"].environment(tmp_path, None, small=True)
    assert (small["CUDA_VISIBLE_DEVICES"], small["DS_ACCELERATOR"]) == ("", "cpu")


def wheel(folder: Path, name: str, code: str, tag: str = "py3-none-any") -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        info = f"{name}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


def test_wheels_are_there_for_the_run_alone_without_network_and_dependencies(command, monkeypatch):
    (command.folder / "constraint.txt").write_text("only_for_this_run==9\n")  # as NVIDIA's containers have
    monkeypatch.setenv("PIP_CONSTRAINT", str(command.folder / "constraint.txt"))
    wheels = command.folder / "wheels"
    wheels.mkdir()
    wheel(wheels, "only_for_this_run", "VALUE = 7\n")
    wheel(wheels, "only_for_this_run", "VALUE = 8\n", tag="cp27-cp27m-win32")  # of another Python, beside it
    seen = "import only_for_this_run; assert only_for_this_run.VALUE == 7\n"
    command.children(right=seen + ALL_PASS)
    before = list(sys.path)
    assert command("--only", "right", "--wheels", wheels) == 0
    assert sys.path == before
    assert command("--only", "right") == 1


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (("--output", "/proc/gpu"), {}, "--output /proc/gpu cannot be written"),
        (("--wheels", "nowhere"), {}, "--wheels nowhere holds no .whl file"),
        (("--minutes", "0"), {}, "must be at least 1"),
        (("--only", "slow"), {}, "invalid choice"),
        (("--only", "calibrated"), {}, "there is none; measure first"),
        (("--table", "README.md"), {}, "README.md"),
        (("--table", "benchmarks/results/train_step.json"), {}, "is no result of benchmarks/gpu.py"),
        (("--table", "benchmarks"), {}, "benchmarks is a folder"),
        ((), {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, "srun has started this 8 times"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_and_nothing_is_written(
    words, environment, sentence, command, capsys, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        code = command(*words)
    except SystemExit as end:  # argparse's
        code = end.code
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not command.output.exists()


def test_without_a_gpu_the_way_to_one_and_the_small_mode_are_named(command, capsys):
    facts = {**FACTS, "gpus": 0, "device": "x86_64, 2 cores", "no_gpu": "the NVIDIA driver is too old"}
    command.children(facts=f"print({json.dumps(json.dumps(facts))})")
    assert command() == 2
    error = capsys.readouterr().err
    assert "finds no GPU here: the NVIDIA driver is too old" in error
    assert "--small" in error
    assert not command.output.exists()
    assert command("--small", "--only", "right") == 0
    assert command.result()["small"]


def test_packages_that_are_missing_are_named_before_anything_is_written(command, capsys, monkeypatch):
    monkeypatch.setattr(command.modules["machine"], "NEEDED", ("torch", "not_there"))
    assert command() == 2
    error = capsys.readouterr().err
    assert "not_there; run `make install`" in error
    assert "torch," not in error
    assert not command.output.exists()


def test_the_command_starts_with_the_standard_library_alone():
    code = "import sys; sys.path.insert(0, ''); import benchmarks.gpu; print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "['__main__', 'benchmarks', 'launch', 'recipe']", done.stderr


def test_the_calibration_can_be_made_again_from_a_result(command, capsys):
    assert command("--only", "fast") == 0
    assert command.result()["calibration"] is None
    assert command("--only", "calibrated") == 0
    assert command.result()["calibration"]["constants"] == {"launch_s": {"measured": 2}}
    assert "--calibration" in capsys.readouterr().err


def test_a_gpu_that_the_planner_does_not_know_has_no_calibration_file_and_the_result_says_why(command):
    command.calibrated = lambda *_: {"constants": None, "notes": ["an L40S is not in recipe/base/hardware.py"]}
    assert command("--only", "fast") == 0
    assert command("--only", "calibrated") == 0
    assert command.result()["unfinished"] == [
        "calibration: no file, since no constant could be derived: an L40S is not in recipe/base/hardware.py"
    ]
    assert not list(command.output.glob("*.calibration.json"))


def test_kernels_and_contenders_that_fail_are_named_in_the_result(command):
    shown = {"shape": {}, "kernel": "loss_head"}
    lines = [
        {**shown, "case": "plain", "failed": "OutOfMemoryError: tried to allocate"},
        {**shown, "case": "ours", "failed": "not possible here: no Triton"},
    ]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    command.children(
        kernels=f"import sys\nopen(sys.argv[2], 'w').write({written!r})\n",
        train_step=STEP
        + """
import json
path = sys.argv[sys.argv.index("--output") + 1]
result = json.load(open(path))
result["unfinished"] = ["Megatron-Core: OutOfMemoryError: tried to allocate"]
json.dump(result, open(path, "w"))
""",
    )
    assert command("--only", "fast") == 0
    loss, megatron = command.result()["unfinished"]
    assert "loss_head, plain: OutOfMemoryError: tried to allocate" in loss
    assert megatron == "train_step: Megatron-Core: OutOfMemoryError: tried to allocate"


def test_pages_say_what_results_there_are(command, tmp_path):
    status = command.modules["gpu_status"].status
    assert status(tmp_path / "none").startswith("No GPU has measured")
    assert "`make gpu` has not run on a GPU yet" in status(ROOT / "benchmarks/results")
    command.output = tmp_path / "results/gpu"
    assert command() == 0
    (tmp_path / "results/gpu/small.json").write_text(
        json.dumps({**command.result(), "small": True, "device": "x86_64, 2 cores", "date": "2099-01-01"})
    )
    words = status(tmp_path / "results")
    assert words.startswith("Measured on one NVIDIA H200, 2026-11-28: 8 layers of 7b-a1b train 75,423 tokens/s")
    assert (
        "3 checks passed, 0 failed or not done, 0 not possible there; the planner's constants are calibrated." in words
    )
    assert "x86_64" not in words


def test_checks_are_reported_one_by_one(tmp_path, modules):
    """tests/gpu/conftest.py, which writes what the command follows."""
    checks = tmp_path / "checks"
    checks.mkdir()
    (checks / "conftest.py").write_text((ROOT / "tests/gpu/conftest.py").read_text(encoding="utf-8"))
    (checks / "test_a_broken.py").write_text("import not_there\n")
    (checks / "test_b_left_out.py").write_text(
        "import pytest\npytest.importorskip('not_there', reason='not possible here: no not_there')\n"
    )
    (checks / "test_c.py").write_text('''
import numpy, pytest, torch
def test_passes(measured):
    """One is one."""
    measured.update(loss=1.5, step=numpy.float32(0.5), device=torch.device("cpu"))
@pytest.mark.parametrize("number", [1])
def test_fails(number):
    """One is two.

    Not the first line.
    """
    raise RuntimeError("it is not")
def test_impossible():
    """Flash is fast."""
    pytest.skip("not possible here: no flash")
def test_is_taken_down(fails_later):
    """Its fixture fails."""
@pytest.fixture
def fails_later():
    yield
    raise ValueError("too late")
''')  # fmt: skip
    (checks / "test_model.py").write_text('def test_first():\n    """The model comes first."""\n')
    # The real one takes two seconds.
    (checks / "torch.py").write_text("""
class device(str): type = property(str)
class cuda:
    is_available = staticmethod(lambda: False)
""")  # fmt: skip
    (checks / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: checks\n")
    report = tmp_path / "report.jsonl"
    words = [{"setup.cfg": "pytest.ini"}.get(word, word) for word in modules["sections"].COMMANDS["right"]]
    env = {**CPU, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*words, f"--report={report}", "."], cwd=checks, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert done.stdout.index("RuntimeError: it is not") < done.stdout.index(
        "= FAILURES ="
    )  # not first when all are done
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    names = next(line["checks"] for line in lines if "checks" in line)
    assert next(name.split("::")[1] for name in names) == "test_first"
    last = {line["what"]: line for line in lines if line.get("outcome") not in (None, "started")}
    assert {what: line["outcome"] for what, line in last.items()} == {
        "all of test_a_broken.py": "failed", "all of test_b_left_out.py": "not possible", "The model comes first": "passed",
        "One is one": "passed", "One is two [1]": "failed", "Flash is fast": "not possible", "Its fixture fails": "failed",
    }  # fmt: skip
    assert last["One is one"]["measured"] == {"loss": 1.5, "step": 0.5, "device": "cpu"}
    assert last["One is two [1]"]["why"] == "RuntimeError: it is not (test_c.py:12)"
    assert last["Flash is fast"]["why"] == "not possible here: no flash"
    assert last["all of test_b_left_out.py"]["why"] == "not possible here: no not_there"
    assert "not_there" in last["all of test_a_broken.py"]["why"]


def test_where_a_gpu_is_promised_no_check_runs_on_cpu_in_its_place(monkeypatch):
    from tests.gpu import conftest

    monkeypatch.setattr(conftest.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    conftest.pytest_sessionstart(None)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(pytest.exit.Exception, match="torch sees none") as end:
        conftest.pytest_sessionstart(None)
    assert end.value.returncode == 3


def test_a_table_has_a_row_for_each_check_and_a_terminal_a_line_for_each_case(modules):
    what = "The experts, and " + "all that belongs to them, " * 4 + "are right"
    flash = {"what": f"{what} [flash]", "outcome": "not possible", "why": "not possible here: no flash"}
    fp32 = {"what": f"{what} [fp32]", "outcome": "passed", "measured": {"error": 1e-7, "x": 2, "y": 3}}
    lone = {"what": "The loss is right", "outcome": "failed", "why": "AssertionError: 1 | 2\nassert"}
    values = {**FACTS, "date": "2026-01-01", "commit": None, "dirty": None, "small": False, "right": [fp32, flash, {**fp32, "what": f"{what} [bf16]"}, lone],
              "kernels": [], "train_step": None, "calibration": None, "unfinished": []}  # fmt: skip
    table = modules["tables"].markdown(values)
    assert f"| {what} | 2 passed, 1 not possible | flash: no flash | fp32, bf16: error 1e-07, x 2 |" in table
    assert "| The loss is right | failed | AssertionError: 1 / 2 assert |  |" in table
    assert "2 passed, 1 failed, 1 not possible" in table
    shown = modules["tables"].check_line(flash).splitlines()
    assert [len(line) for line in shown] == [100, 12]
    assert shown[0].endswith("… [flash]")
    assert shown[1] == "    no flash"


KERNELS_NEEDED = {"matmul", "grouped_gemm", "attention", "loss_head", "streaming", "launch", "host_read", "moe_layer"}


@pytest.mark.slow
def test_the_small_mode_covers_every_part(small_run, small_result, modules, capsys):
    assert small_result["unfinished"] == []
    assert small_result["right"]
    assert {line["outcome"] for line in small_result["right"]} <= {"passed", "not possible"}
    assert all(line["why"] for line in small_result["right"] if line["outcome"] == "not possible")
    assert {line["kernel"] for line in small_result["kernels"]} >= KERNELS_NEEDED
    step = small_result["train_step"]
    assert {name for name, line in step["contenders"].items() if "tokens_per_s" in line} == step["contenders"].keys()
    assert any("is not in recipe/base/hardware.py" in note for note in small_result["calibration"]["notes"])
    assert not small_run.with_suffix(".calibration.json").exists()  # the planner plans no CPU
    assert modules["gpu"].main(["--table", str(small_run)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*KERNELS_NEEDED, *step["contenders"]))


def test_the_calibration_of_a_real_result_is_one_that_the_planner_takes(modules, tmp_path):
    from recipe.planner.calibration import load_calibration

    step = json.loads((ROOT / "benchmarks/results/train_step_h200.json").read_text(encoding="utf-8"))
    values = {**FACTS, "date": step["date"], "commit": None, "dirty": None, "command": step["command"], "packages": step["packages"],
              "format": 1, "small": False, "right": [], "kernels": [], "train_step": step, "calibration": None,
              "unfinished": []}  # fmt: skip
    (tmp_path / "nvidia-h200.json").write_text(json.dumps(values))
    assert modules["gpu"].main(["--only", "calibrated", "--output", str(tmp_path)]) == 0
    assert load_calibration(tmp_path / "nvidia-h200.calibration.json").constants.run_efficiency is not None
