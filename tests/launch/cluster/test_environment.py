"""What ranks on other hosts are given."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from launch.cluster.environment import FORWARDED, deepspeed_env
from tests.conftest import ROOT


def test_set_variables_and_the_users_own_file_are_forwarded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in FORWARDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET", "not for others")
    (tmp_path / ".deepspeed_env").write_text("NCCL_IB_HCA=mlx5_0,mlx5_1\n\nOMP_NUM_THREADS = 8\n")
    for by_pdsh in (True, False):
        assert deepspeed_env(by_pdsh=by_pdsh) == "OMP_NUM_THREADS=8\nNCCL_IB_HCA=mlx5_0,mlx5_1\n"


SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]  # zsh is not on every machine


def installed(folder: Path) -> Path:
    """A copy of the project, its env.sh alone, with an environment that has a Python."""
    for name in ("launch", ".venv/bin"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "launch/env.sh", folder / "launch/env.sh")
    (folder / ".venv/bin/python").write_text("")
    (folder / ".venv/bin/python").chmod(0o755)
    return folder


def sourced(shell: str, path: str, cwd: Path, times: int = 1) -> dict[str, str]:
    """What the environment is after `source PATH` in a bare shell."""
    words = [shutil.which(shell), "-c", f"{'source ' + shlex.quote(path) + ' && '}" * times + "env -0"]
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/", "CDPATH": str(cwd)}
    done = subprocess.run(words, cwd=cwd, env=bare, capture_output=True, text=True, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


@pytest.mark.parametrize("shell", SHELLS)
def test_env_sh_is_sourced_from_any_folder_and_twice(shell, tmp_path):
    project, other = installed(tmp_path / "a project"), tmp_path / "other"
    other.mkdir()
    for path, cwd, times in (("launch/env.sh", project, 1), (str(project / "launch/env.sh"), other, 2)):
        after = sourced(shell, path, cwd, times)
        assert after["PATH"] == f"{project}/.venv/bin:/usr/bin:/bin"
        assert after["PYTHONPATH"] == str(project)
        assert after["TORCH_EXTENSIONS_DIR"] == f"{project}/.venv/torch_extensions"


@pytest.mark.parametrize("shell", SHELLS)
def test_env_sh_without_an_environment_says_what_to_run(shell, tmp_path):
    project = installed(tmp_path)
    shutil.rmtree(project / ".venv")
    words = [shutil.which(shell), "-c", "source launch/env.sh; echo $?"]
    run = partial(subprocess.run, words, cwd=project, capture_output=True, text=True, check=True)
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    done = run(env=bare)
    assert done.stdout == "2\n"
    assert f"there is no environment in {project}/.venv" in done.stderr
    assert "run `make install`" in done.stderr
    (tmp_path / "deepspeed").touch(mode=0o755)  # of a container, say
    done = run(env={**bare, "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_env_sh_tells_of_a_link_to_nothing_in_a_strict_script_too(tmp_path):
    project = installed(tmp_path)
    shutil.rmtree(project / ".venv")
    (project / ".venv").symlink_to(tmp_path / "removed" / "environment")
    words = ["bash", "-euo", "pipefail", "-c", "source launch/env.sh"]
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(words, cwd=project, env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, "run `make install`" in done.stderr) == (2, True)


def test_the_example_sets_what_env_sh_sets(tmp_path):
    """DeepSpeed reads such a file line by line as NAME=VALUE, and knows no comments."""
    lines = (ROOT / "launch" / "deepspeed_env.example").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert all(line.count("=") >= 1 and not line.startswith("#") for line in lines)
    done = sourced("bash", "launch/env.sh", installed(tmp_path))
    set_by_env_sh = done.keys() & set(FORWARDED)
    assert len(set_by_env_sh) == 5
    assert set_by_env_sh <= names <= set(FORWARDED)
