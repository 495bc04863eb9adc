"""The words that a user gives to the deepspeed launcher (after --), read as it reads them: abbreviations too, the last one counts."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from launch.cluster.hosts import check_hosts
from launch.cluster.quoting import is_plain_path
from recipe.base.errors import UserError

# Of deepspeed/launcher/runner.py of DeepSpeed 0.19.8, all but its help.
_OF_THE_HOSTS = (
    ("-H", "--hostfile"), ("-i", "--include"), ("-e", "--exclude"), ("--num_nodes",), ("--num_gpus", "--num_accelerators"),
    ("--force_multi",), ("--no_ssh",), ("--node_rank",),
)  # fmt: skip
_NUMBERS = ("--master_port", "--ssh_port")
_WORDS = (
    "--master_addr", "--launcher", "--launcher_args", "--enable_each_rank_log", "--autotuning", "--bind_core_list",
    "--venv_script", "--log_level",
)  # fmt: skip
_FLAGS = (
    ("--module",), ("--no_python",), ("--no_local_rank",), ("--no_ssh_check",), ("--save_pid",), ("--bind_cores_to_rank",),
    ("-q", "--quiet"),
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"for the deepspeed launcher, after --: {message}")


class _OfTheHosts(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise UserError(
            f"{option_string} for the deepspeed launcher would change where ranks run; leave it out, --hostfile, --num_gpus and "
            "--slurm before the -- say that"
        )


def launcher_options(words: list[str]) -> argparse.Namespace:
    """The values of the launcher's options.

    Raises:
        UserError: what it does not know, or what says where ranks run.
    """
    parser = _Parser(add_help=False)
    for names in _OF_THE_HOSTS:
        parser.add_argument(*names, nargs="*", action=_OfTheHosts, dest="hosts")
    for name in _NUMBERS:
        parser.add_argument(name, type=int)
    for name in _WORDS:
        parser.add_argument(name)
    for names in _FLAGS:
        parser.add_argument(*names, action="store_true")
    options = parser.parse_args(words)
    options.launcher = (options.launcher or "pdsh").lower()
    return options


def check_for_other_hosts(options: argparse.Namespace) -> None:
    """Raises UserError for values that the shells of other hosts would read otherwise, since nothing quotes them."""
    for name, value in vars(options).items():
        # Those of --launcher_args go to pdsh or mpirun on this host.
        if isinstance(value, str) and name != "launcher_args" and not is_plain_path(value):
            raise UserError(
                f"--{name} {value!r} for the deepspeed launcher would be read as more than one word by the shells of other hosts; "
                "leave it out, or give it without spaces and special characters"
            )
    if options.master_addr is not None:
        check_hosts([options.master_addr], "--master_addr")
