"""What is typed is what arrives: through DeepSpeed's own builder of pdsh's command, through ssh, and through Slurm's srun."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cluster import allocation as places
from launch.cluster.allocation import Hosts, SlurmNodes, ThisHost
from launch.cluster.environment import deepspeed_env, forwarded
from launch.cluster.hosts import deepspeed_launcher
from launch.cluster.launcher_options import launcher_options
from recipe.base.errors import UserError

TYPED = [
    "run_dir=/data/my runs/a",
    "seed=$(touch owned)",
    "name=$(touch owned) and spaces",
    "`touch owned`",
    "a `touch owned` b",
    "cost=$HOME",
    "cost $HOME ${HOME}",
    "it's",
    'a "quoted" word',
    '"quoted"',
    "both 'of' \"them\"",
    "back\\slash",
    "back\\ slash \\\\ \\\" \\$x",
    "wow!",
    "wow ! !!",
    "two\nlines",
    "two lines\nof $words",
    "a;touch owned",
    "a&touch owned|b>c<d",
    "glob*?[a]{b,c}",
    "~/x #no comment",
    "#x",
    "100%",
    "%h %n %u %% 100 %",
    "log.%h",
    "",
    " ",
    "data.mixture={\"weights\": {\"en\": 0.7}}",
    "köln 北京",
]  # fmt: skip
# What stands for Python on the other host: prints what it was given.
STUB = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@pytest.fixture
def arrive(tmp_path, monkeypatch) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """A function from what DeepSpeed's launcher is given to what its remote launcher gets, by DeepSpeed's builder and a shell."""
    from deepspeed.launcher import runner
    from deepspeed.launcher.multinode_runner import PDSHRunner

    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def call(words: list[str], env_file: Path | None = None) -> tuple[list[str], dict[str, str]]:
        args = runner.parse_args(["--hostfile", "hosts", "--master_addr", "a", *words])
        built = PDSHRunner(args, "e30=")
        for line in env_file.read_text().splitlines(keepends=True) if env_file else ():
            built.add_export(*line.split("=", maxsplit=1))  # as runner.main does
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(stub))
            command, _, _ = built.get_cmd({}, {"a": [0]})
        remote = command[command.index("a") + 1 :]
        assert remote[0].startswith("export") or not remote[0]
        # pdsh joins the words, each with its substitutions (pipecmd_format_arg of its pipecmd.c); sshd runs `sh -c`.
        known = {"h": "a", "u": "me", "n": "0", "%": "%"}
        joined = " ".join(
            re.sub(r"%(.?)", lambda m: known.get(m[1], m[0]), word, flags=re.DOTALL) for word in remote if word
        )
        done = subprocess.run(["sh", "-c", joined], capture_output=True, text=True, check=True, env={"HOME": "/h"})
        argv, environment = json.loads(done.stdout)
        assert not (tmp_path / "owned").exists()
        return argv[argv.index("train.py") + 1 :], environment

    return call


def test_the_harness_can_tell(arrive):
    """DeepSpeed's own quoting alone runs what it is given."""
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        arrive(["train.py", "--set", "seed=$(touch owned)"])


def test_arguments_arrive_on_other_hosts_as_they_were_typed(arrive, tmp_path):
    place = Hosts({"a": 1, "b": 1}, [], tmp_path)
    words = [word for typed in TYPED for word in ("--set", typed)]
    got, _ = arrive(place.typed(["train.py", *words]))
    assert got == words


def test_arguments_arrive_on_this_host_and_in_slurms_steps_as_they_were_typed(tmp_path, monkeypatch):
    assert ThisHost(1, [], tmp_path).typed(TYPED) == TYPED
    monkeypatch.setattr(places, "_output", lambda *_: "a idle\nb idle\n")
    place = SlurmNodes({"a": 1, "b": 1}, ["--module"], tmp_path)
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(stub))
        words = place.command(2) + place.typed(["train.py", *TYPED])
    task = words[words.index("env") :]  # what srun executes, without a shell of its own
    done = subprocess.run(task, capture_output=True, text=True, check=True, env={**os.environ, "SLURM_NODEID": "1"})
    argv, environment = json.loads(done.stdout)
    assert environment["RECIPE_HOSTS"] == "a:1,b:1"
    assert argv[argv.index("train.py") - 1] == "--node_rank=1"
    assert argv[argv.index("train.py") + 1 :] == TYPED


def test_variables_arrive_as_they_are_set(arrive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = {"A": "$HOME", "B": "x `touch owned` \\ \"y\" 'z'", "C": "plain", "D": "%h.%p", "E": "", "F": "a=b;c"}
    (tmp_path / ".deepspeed_env").write_text("# ours = all\n\n" + "".join(f"{k}={v}\n" for k, v in own.items()))
    monkeypatch.setenv("NCCL_DEBUG_FILE", "/tmp/$USER.%h")
    monkeypatch.setenv("OMP_NUM_THREADS", "$(touch owned)")
    (tmp_path / "written").write_text(deepspeed_env(by_pdsh=True))
    _, environment = arrive(["train.py"], tmp_path / "written")
    wanted = own | {"NCCL_DEBUG_FILE": "/tmp/$USER.%h", "OMP_NUM_THREADS": "$(touch owned)"}
    assert {name: environment.get(name) for name in wanted} == wanted
    raw = dict(line.split("=", maxsplit=1) for line in deepspeed_env(by_pdsh=False).splitlines())
    assert {name: raw[name] for name in own} == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=b\nNCCL_DEBUG\n", "line 2: 'NCCL_DEBUG' is not NAME=VALUE"),
        ("A;touch owned=1\n", "line 1: 'A;touch owned=1' is not NAME=VALUE"),
        ("export A=1\n", "is not NAME=VALUE"),
        ("A='b c'\n", "the quotes would be a part of A's value"),
        ("A=b\x0bc\n", "a value of several lines"),
        (b"A=\xe9\n", "is not text in UTF-8"),
    ],
)
def test_a_deepspeed_env_that_would_arrive_otherwise_is_refused(text, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        forwarded()
    with pytest.raises(UserError, match=re.escape(message)):  # before anything of a run begins
        Hosts({"a": 1, "b": 1}, [], tmp_path)
    Hosts({"localhost": 1}, [], tmp_path)


def test_a_variable_of_several_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1\ntouch owned")
    with pytest.raises(UserError, match="OMP_NUM_THREADS of the environment: a value of several lines"):
        deepspeed_env(by_pdsh=True)


@pytest.mark.parametrize("folder", ["with space", "a;b", "$(id)", "it's"])
def test_a_checkout_whose_path_is_not_one_word_is_refused_for_other_hosts_alone(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(UserError, match=re.escape(folder) + r".* without quotes, .*move the project"):
        Hosts({"a": 1, "b": 1}, [], tmp_path)
    Hosts({"localhost": 1}, [], tmp_path)


@pytest.mark.parametrize(
    "words",
    [["--master_addr", "$(id)"], ["--master_addr=-a"], ["--venv_script", "x;id"], ["--venv_s=a b"], ["--venv_script", "~/x"],
     ["--bind_core_list", "0 #"], ["--log_level", "x*"], ["--enable_each_rank_log", "{a,b}"], ["--enable_each_rank_log="]],
)  # fmt: skip
def test_words_for_the_launcher_are_one_word_to_other_hosts(words, tmp_path):
    with pytest.raises(UserError, match=r"would be read as more than one word|is no host name"):
        Hosts({"a": 1, "b": 1}, words, tmp_path)


def test_what_is_for_pdsh_itself_may_have_spaces(tmp_path):
    Hosts({"a": 1, "b": 1}, ["--launcher_args", "-u 5 -t 3", "--venv_script", "/v/bin/activate"], tmp_path)


@pytest.mark.parametrize(
    "words",
    [["-H", "f"], ["-Hf"], ["--hostfile=f"], ["--hostf", "f"], ["-i", "a"], ["--incl=a"], ["--include", "a"], ["-e", "a"],
     ["--excl", "a"], ["--num_nodes", "1"], ["--num_n=1"], ["--num_gpus", "1"], ["--num_accelerators", "1"], ["--force_multi"],
     ["--force"], ["--no_ssh"], ["--node_rank", "0"], ["--quiet", "--node=0"], ["-qH", "f"]],
)  # fmt: skip
def test_words_for_the_launcher_do_not_say_where_ranks_run(words, tmp_path):
    for make in (
        lambda: ThisHost(1, words, tmp_path),
        lambda: Hosts({"a": 1, "b": 1}, words, tmp_path),
        lambda: Hosts({"localhost": 1}, words, tmp_path),
        lambda: SlurmNodes({"a": 1}, words, tmp_path),
    ):
        with pytest.raises(UserError, match="would change where ranks run"):
            make()


@pytest.mark.parametrize("words", [["--nonsense"], ["train2.py"], ["--", "x"], ["--master_port", "x"], ["--launcher"]])
def test_what_the_launcher_does_not_know_is_refused(words, tmp_path):
    with pytest.raises(UserError, match="for the deepspeed launcher"):
        ThisHost(1, words, tmp_path)


def test_the_launchers_options_are_those_that_deepspeed_has(monkeypatch):
    from deepspeed.launcher import runner

    known: list[set[str]] = []

    def parse_args(parser: argparse.ArgumentParser, args: object = None) -> argparse.Namespace:
        known.append(set(parser._option_string_actions))
        return argparse.Namespace(launcher=None)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    runner.parse_args()
    launcher_options([])
    assert known[0] - {"-h", "--help"} == known[1]


def test_the_launchers_options_are_read_as_deepspeed_reads_them():
    for words in (["--ssh_port", "7"], ["--ssh_port=7", "--quiet"], ["--ssh_port=9", "--ssh_p", "7"]):
        assert launcher_options(words).ssh_port == 7
    for words in (["--launcher", "openmpi", "--launcher=pdsh"], ["--launcher=openmpi", "--launcher", "PDSH"], []):
        assert launcher_options(words).launcher == "pdsh"


def test_a_launch_on_this_host_reads_no_hostfile_and_asks_nobody(tmp_path, monkeypatch):
    """DeepSpeed's own launcher, as far as the command of the ranks' launcher."""
    from deepspeed.launcher import runner

    monkeypatch.setenv("LOCAL_SIZE", "2")  # or DeepSpeed asks numactl
    monkeypatch.setattr(runner, "DLTS_HOSTFILE", str(tmp_path / "hostfile"))
    (tmp_path / "hostfile").write_text("other slots=4\n")
    started: list[list[str]] = []

    def start(words: list[str], env: object = None) -> argparse.Namespace:
        started.append(words)
        return argparse.Namespace(wait=lambda: None, returncode=0)

    def ask(*_: object, **__: object) -> None:
        raise AssertionError("asked over ssh")

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    monkeypatch.setattr(runner.subprocess, "check_call", ask)
    monkeypatch.setattr(runner.subprocess, "check_output", ask)
    for place in (ThisHost(2, ["--quiet"], tmp_path), Hosts({"localhost": 2}, ["--quiet"], tmp_path)):
        words = place.command(2)
        runner.main([*words[words.index(deepspeed_launcher()) + 1 :], "train.py"])
        world = next(word.partition("=")[2] for word in started.pop() if word.startswith("--world_info="))
        assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": [0, 1]}


def commands_of(place: Hosts, monkeypatch, ranks: int = 1) -> tuple[list[str], list[list[str]]]:
    asked: list[list[str]] = []

    def answer(words: list[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(places, "run", answer)
    return place.command(ranks), asked


def test_ranks_get_the_hostfiles_names_of_their_hosts(arrive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    commands_of(Hosts({"10.0.0.1": 1, "gpu-2.cluster": 8}, [], tmp_path), monkeypatch, ranks=9)
    _, environment = arrive(["train.py"], tmp_path / "deepspeed_env")
    assert environment["RECIPE_HOSTS"] == "10.0.0.1:1,gpu-2.cluster:8"
    words, _ = commands_of(Hosts({"localhost": 1}, [], tmp_path), monkeypatch)
    assert words[:2] == ["env", "RECIPE_HOSTS=localhost:1"]


def test_a_lone_host_is_reached_over_ssh_unless_it_is_this_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words, asked = commands_of(Hosts({"192.0.2.1": 1}, ["--ssh_port=7"], tmp_path), monkeypatch)
    assert "--force_multi" in words
    (ssh,) = asked
    assert ssh[-4:-1] == ["7", "--", "192.0.2.1"]  # options end before the host
    words, asked = commands_of(Hosts({"127.0.0.1": 1}, [], tmp_path), monkeypatch)
    assert "--force_multi" not in words
    assert asked == []


def test_other_launchers_of_deepspeed_have_no_shell_between(tmp_path):
    assert Hosts({"a": 1, "b": 1}, ["--launcher", "openmpi"], tmp_path).typed(["$x y"]) == ["$x y"]


def test_ranks_are_counted_before_a_host_is_asked(tmp_path):
    args = argparse.Namespace(gpus_per_node=None, slurm=False, hostfile=None, num_gpus=2)
    with pytest.raises(UserError, match="the ds_config is for 4 ranks, not --num_gpus 2"):
        places.allocation_of(args, [], tmp_path).check(4)
    with pytest.raises(UserError, match="the hosts give 2 ranks"):
        Hosts({"a": 1, "b": 1}, [], tmp_path).check(4)
