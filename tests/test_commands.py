"""The console commands of an installed package, and what its wheel holds."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess

import pytest

from launch import train_command
from tests.conftest import ROOT, Called

WITHOUT_A_COMMAND = {
    "recipe.train": "started on each rank: deepspeed recipe/train.py, or moe-train",
    "recipe.export": "started on each rank: deepspeed recipe/export.py",
    "recipe.import_model": "started on each rank: deepspeed recipe/import_model.py",
    "recipe.branch": "started on each rank: deepspeed recipe/branch.py",
    "launch.preflight_ranks": "started on each rank by moe-preflight",
    "launch.supervise": "moe-train, after launch/env.sh",
    "launch.quickstart": "needs the folders of a checkout: make quickstart",
    "recipe.describe_models": "prints a part of docs/",
    "recipe.describe_modules": "prints a part of docs/",
    "recipe.describe_plans": "prints a part of docs/",
    "recipe.describe_settings": "prints a part of docs/",
}
NOT_IN_THE_WHEEL = {"launch/data_prep.slurm", "launch/train.slurm", "launch/deepspeed_env.example"}  # of a checkout


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def commands() -> dict[str, str]:
    """Command -> its module."""
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = read["options.entry_points"]["console_scripts"].split("\n")
    targets = dict(line.split(" = ") for line in lines if line)
    assert all(target.endswith(":main") for target in targets.values())
    return {name: target.removesuffix(":main") for name, target in targets.items()}


@pytest.mark.parametrize("name", commands())
def test_a_command_answers_help(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [name])
    main = importlib.import_module(commands()[name]).main
    done = Called(main, capsys, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {name} ")


def test_each_script_has_a_command_or_a_reason():
    scripts = {
        f"{folder}.{path.stem}"
        for folder in ("recipe", "launch", "data_prep")
        for path in (ROOT / folder).glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    with_command = set(commands().values()) - {"launch.train_command"}
    assert scripts == with_command | WITHOUT_A_COMMAND.keys()
    assert not with_command & WITHOUT_A_COMMAND.keys()
    assert all(name.startswith("moe-") for name in commands())


def test_the_wheel_holds_every_file_that_is_no_module_of_checkouts_alone(config):
    shipped = {
        path.relative_to(ROOT).as_posix()
        for folder, patterns in config["options.package_data"].items()
        for pattern in patterns.split(", ")
        for path in (ROOT / folder).glob(pattern)
    }
    listed = subprocess.run(
        ["git", "ls-files", "recipe", "launch", "data_prep"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    others = {name for name in listed.stdout.split("\n") if name and not name.endswith(".py")}
    assert others - shipped == NOT_IN_THE_WHEEL


def test_moe_train_has_the_environment_of_env_sh(monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    environment = train_command.environment_of_launches()
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert environment["NCCL_DEBUG"] == "INFO"  # what is set already wins


def test_moe_train_refuses_where_env_sh_does(tmp_path, monkeypatch, capsys):
    (tmp_path / "env.sh").write_text("return 2\n")
    monkeypatch.setattr(train_command, "ENVIRONMENT", tmp_path / "env.sh")
    words = ("--num_gpus", 2, "--config", tmp_path / "run.yaml", "--deepspeed_config", tmp_path / "ds.json")
    done = Called(train_command.main, capsys, *words)
    assert done.returncode == 2
    assert f"{tmp_path}/env.sh refuses" in done.stderr


def test_make_install_says_what_it_installs_and_ends_with_how_to_use_it():
    done = subprocess.run(["make", "-n", "-B", "install"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("echo ")]
    assert "packages into .venv, some minutes" in lines[0]
    after = done.stdout.partition("touch .venv/.installed")[2]
    assert "source launch/env.sh" in after
    proposed = set(re.findall(r"\b(moe-[a-z-]+|make [a-z]+)", after))
    assert proposed - {"make quickstart"} <= commands().keys()
    assert len(proposed) > 1
