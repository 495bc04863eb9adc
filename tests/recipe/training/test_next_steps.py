"""What the end of a dry run and of a run propose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from recipe import import_model, train
from recipe.training.next_steps import after_dry_run, after_stop, after_training, train_command
from tests.conftest import ROOT


def proposed(text: str) -> list[str]:
    """The commands among the lines."""
    return re.findall(r"^  \S.*?  +(\S.*)$", text, re.M)


def test_a_finished_run_names_its_folder_and_commands_that_can_be_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    run = Path("/data/runs of mine/a")
    text = after_training(run, ranks=2, ranks_here=2)
    assert text.startswith(f"run folder  {run}\n")
    commands = [shlex.split(command) for command in proposed(text)]
    assert commands == [
        ["moe-report", str(run)],
        ["tensorboard", "--logdir", f"{run}/tensorboard"],
        ["deepspeed", "--num_gpus", "2", "recipe/evaluate_model.py", "held-out", "--run", str(run)],
        ["deepspeed", "--num_gpus", "2", "recipe/export.py", "--run", str(run), "--output", f"{run}/export"],
    ]


def test_elsewhere_the_scripts_have_their_whole_path_and_several_hosts_a_hostfile(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commands = proposed(after_training(tmp_path, ranks=16, ranks_here=8))
    assert commands[-1].startswith(f"deepspeed --hostfile HOSTFILE {ROOT}/recipe/export.py --run {tmp_path} ")


def test_a_stopped_run_says_how_it_goes_on():
    text = after_stop(Path("runs/a"))
    assert text == "run folder  runs/a; run the same command again to continue (recipe/train.py with --resume auto)"


def test_a_dry_run_says_how_to_start_what_it_has_checked():
    words = ["recipe/train.py", "--local_rank=0", "--config", "a b.yaml", "--dry-run"]
    assert after_dry_run(2, words).endswith(": deepspeed --num_gpus 2 recipe/train.py --config 'a b.yaml'")
    assert after_dry_run(64, words).endswith(": deepspeed --hostfile HOSTFILE recipe/train.py --config 'a b.yaml'")


@pytest.mark.parametrize(
    ("of_host", "start"),
    [({}, "deepspeed --num_gpus 4"), ({"LOCAL_SIZE": "4"}, "deepspeed --num_gpus 4"),
     ({"LOCAL_SIZE": "2"}, "deepspeed --hostfile HOSTFILE")],
)  # fmt: skip
def test_the_command_that_trains_what_was_begun_is_printed_as_a_shell_takes_it(of_host, start, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    for name, value in of_host.items():
        monkeypatch.setenv(name, value)
    words = [
        "--model",
        "m",
        "--config",
        "my run.yaml",
        "--deepspeed_config",
        "ds.json",
        "--set",
        "data.mixture.weights={en: 1}",
    ]
    command = train_command(import_model.parse(words), ranks=4)
    assert command.startswith(f"{start} recipe/train.py ")
    args = train.parse(shlex.split(command.partition("recipe/train.py ")[2]))
    assert (str(args.config), args.set, str(args.deepspeed_config), args.resume) == (
        "my run.yaml", ["data.mixture.weights={en: 1}"], "ds.json", "auto"
    )  # fmt: skip
