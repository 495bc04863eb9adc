"""What ranks on other hosts are given."""

from __future__ import annotations

import subprocess

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


def test_the_example_sets_what_env_sh_sets():
    """DeepSpeed reads such a file line by line as NAME=VALUE, and knows no comments."""
    lines = (ROOT / "launch" / "deepspeed_env.example").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert all(line.count("=") >= 1 and not line.startswith("#") for line in lines)
    shell = "source launch/env.sh; env -0"
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    set_by_env_sh = {entry.partition("=")[0] for entry in done.stdout.split("\0")} & set(FORWARDED)
    assert len(set_by_env_sh) == 5
    assert set_by_env_sh <= names <= set(FORWARDED)
