"""A stop before the training loop ends a rank at once with 75; in it the second ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.base.ranks import RESTART, STOP_SIGNALS
from tests.conftest import ROOT
from tests.patience import PATIENCE_S
from tests.recipe.run.test_locks import HOLD

RANK = """
import sys, threading, time
from pathlib import Path
from recipe.run import early_stop
early_stop.answer_early_stops().watch(Path(sys.argv[1]))
if sys.argv[2] == "training":
    from recipe.training.stopping import StopRequest
    request = StopRequest(Path(sys.argv[1]) / "stop", None)
    threading.Thread(target=lambda: [print(line.strip(), request._signal, flush=True) for line in sys.stdin], daemon=True).start()
print("ready", flush=True)
for _ in range(600):  # Python runs handlers between two calls, as between two steps
    time.sleep(0.1)
"""


def start(run_dir: Path, phase: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, run_dir, phase],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_training_ends_the_rank_with_75(number, tmp_path):
    process = start(tmp_path, "starting")
    process.send_signal(number)
    _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == RESTART
    assert message.startswith("stopped by a signal before the first step; no checkpoint is lost")
    assert message.count("\n") == 1


def test_the_ranks_shared_memory_does_not_stay(tmp_path, monkeypatch):
    for name, value in (("MASTER_ADDR", tmp_path.name), ("MASTER_PORT", "1"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    buffer = Path("/dev/shm", f"deepspeed_allreduce_buffer_{os.getuid()}_{tmp_path.name}_1_0")
    buffer.touch()
    try:
        process = start(tmp_path, "starting")
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
        assert not buffer.exists()
    finally:
        buffer.unlink(missing_ok=True)


def test_a_file_before_training_is_answered_and_left_to_a_supervisor_where_there_is_one(tmp_path):
    for supervised in (False, True):
        holder = None
        if supervised:
            words = [sys.executable, "-c", HOLD, tmp_path / "supervisor.lock"]
            holder = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert holder.stdout is not None
            holder.stdout.readline()
        process = start(tmp_path, "starting")
        (tmp_path / "stop").touch()
        assert process.wait(30) == RESTART
        assert (tmp_path / "stop").exists() == supervised
        if holder is not None:
            holder.communicate()


def test_in_training_a_signal_asks_and_the_second_ctrl_c_ends(tmp_path):
    process = start(tmp_path, "training")
    assert process.stdin is not None
    assert process.stdout is not None

    def asked() -> str:
        process.stdin.write("asked\n")
        process.stdin.flush()
        return process.stdout.readline()

    assert asked() == "asked None\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):  # as one ctrl-C arrives under the launcher
        process.send_signal(number)
    assert process.poll() is None
    (tmp_path / "stop").touch()  # the loop's to answer
    while asked() == "asked None\n":
        pass
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == RESTART
    assert "the second ctrl-C" in message
