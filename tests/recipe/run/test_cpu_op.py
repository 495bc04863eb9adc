"""A lock file left by a killed build does not stop the next start."""

from __future__ import annotations

import threading

from recipe.run.cpu_op import clear_leftover
from tests.conftest import run_python


def test_a_lock_of_a_holder_that_died_is_removed_at_once(tmp_path):
    (tmp_path / "lock").touch()
    clear_leftover(tmp_path / "lock", holder_died=True, patience_s=1e9)
    assert not (tmp_path / "lock").exists()


def test_a_lock_of_unknown_origin_is_waited_for(tmp_path, capsys):
    lock = tmp_path / "lock"
    lock.touch()
    threading.Timer(0.3, lock.unlink).start()
    clear_leftover(lock, holder_died=False, patience_s=1e9)
    assert "waiting for" in capsys.readouterr().err
    lock.touch()
    clear_leftover(lock, holder_died=False, patience_s=0.0)
    assert not lock.exists()
    assert "left by a process that was killed" in capsys.readouterr().err


def test_the_op_loads_where_a_killed_start_left_its_marks(tmp_path):
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    (folder / "lock").touch()
    (tmp_path / "deepspeed_shm_comm.recipe.lock").write_text("loading")
    done = run_python("-m", "recipe.run.cpu_op", env={"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "left by a process that was killed" in done.stderr
    assert (folder / "deepspeed_shm_comm.so").exists()
    assert (tmp_path / "deepspeed_shm_comm.recipe.lock").read_text() == ""
