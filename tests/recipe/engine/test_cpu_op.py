"""A lock file left by a killed build does not stop the next start."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

from recipe.base.errors import UserError
from recipe.engine import cpu_op
from recipe.engine.cpu_op import clear_leftover, saying_that_it_compiles, use_own_ninja
from tests.conftest import launch


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


# Stands in for the minute that a compiler takes: notes what it was asked for, and links what is compiled already.
COMPILER = """#!/bin/sh
echo "$@" >> {log}
while [ $# -gt 0 ]; do
  case "$1" in -o) output="$2"; shift ;; -MF) : > "$2"; shift ;; esac
  shift
done
case "$output" in *.so) cp {library} "$output" ;; *) : > "$output" ;; esac
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.distributed
def test_the_op_loads_where_a_killed_start_left_its_marks(tmp_path):
    done = launch(1, "recipe/engine/cpu_op.py")  # where every test has it
    assert done.returncode == 0, done.stderr
    library = Path(_get_build_directory("deepspeed_shm_comm", verbose=False)) / "deepspeed_shm_comm.so"
    folder, mark, log = (tmp_path / name for name in ("deepspeed_shm_comm", "deepspeed_shm_comm.recipe.lock", "log"))
    folder.mkdir()
    (folder / "lock").touch()
    mark.write_text("loading")
    # Another ninja before this environment's, as ssh's PATH may have.
    other = script(tmp_path / "bin" / "ninja", "#!/bin/sh\nexit 9\n")
    compiler = script(tmp_path / "bin" / "c++", COMPILER.format(log=log, library=library))
    environment = {
        "TORCH_EXTENSIONS_DIR": str(tmp_path), "PATH": f"{other.parent}:/usr/bin:/bin", "CXX": str(compiler),
        "TORCH_DONT_CHECK_COMPILER_ABI": "1",
    }  # fmt: skip
    done = launch(1, "recipe/engine/cpu_op.py", env=environment)
    assert done.returncode == 0, done.stderr
    assert f"compiling DeepSpeed's collective for CPU ranks into {folder}" in done.stderr
    assert "left by a process that was killed" in done.stderr
    assert "shm.cpp" in log.read_text()
    assert (folder / "deepspeed_shm_comm.so").read_bytes() == library.read_bytes()
    assert mark.read_text() == ""


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
