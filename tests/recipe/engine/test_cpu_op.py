"""A lock file left by a killed build does not stop the next start."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from recipe.base.errors import UserError
from recipe.engine import cpu_op
from recipe.engine.cpu_op import clear_leftover, saying_that_it_compiles, use_own_ninja
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
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / "ninja"  # another one before this environment's, as ssh's PATH may have
    other.write_text("#!/bin/sh\nexit 9\n")
    other.chmod(0o755)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = run_python("-m", "recipe.engine.cpu_op", env=environment)
    assert done.returncode == 0, done.stderr
    assert f"compiling DeepSpeed's collective for CPU ranks into {folder}" in done.stderr
    assert "left by a process that was killed" in done.stderr
    assert (folder / "deepspeed_shm_comm.so").exists()
    assert (tmp_path / "deepspeed_shm_comm.recipe.lock").read_text() == ""


def test_the_environments_ninja_comes_first(monkeypatch):
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"/usr/bin:{own}")
    use_own_ninja()
    use_own_ninja()
    assert cpu_op.os.environ["PATH"] == f"{own}:/usr/bin:{own}"


def test_a_host_without_ninja_or_compiler_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_op.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"there is no ninja on .*; pip install ninja into"):
        use_own_ninja()
    monkeypatch.setenv("CXX", "ccache g++-99")
    with (
        pytest.raises(UserError, match=r"there is no compiler \(ccache\) on .*install g\+\+"),
        saying_that_it_compiles(tmp_path / "op.so"),
    ):
        pass
    (tmp_path / "op.so").touch()  # compiled elsewhere
    with saying_that_it_compiles(tmp_path / "op.so"):
        pass


def test_a_second_compilation_is_said_when_it_takes_as_long(tmp_path, monkeypatch, capsys):
    (tmp_path / "op.so").touch()
    with saying_that_it_compiles(tmp_path / "op.so"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cpu_op, "LOAD_S", 0.0)
    message = threading.Event()
    monkeypatch.setattr("builtins.print", lambda *_, **__: message.set())
    with saying_that_it_compiles(tmp_path / "op.so"):
        assert message.wait(30)
