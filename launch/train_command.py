"""The command moe-train: what launch/train.sh does, from an installed package and from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launch import supervise
from recipe.base.errors import UserError, exit_on_user_error

ENVIRONMENT = Path(__file__).resolve().with_name("env.sh")


def environment_of_launches() -> dict[str, str]:
    """This process's environment as launch/env.sh changes it, the one owner of those defaults.

    Raises:
        UserError: there is no bash, or env.sh refuses; it has said why.
    """
    # The packages are those of this Python, also where its folder is not on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    words = ["bash", "-c", 'source "$1" && env -0', "bash", str(ENVIRONMENT)]
    try:
        done = subprocess.run(words, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise UserError("there is no bash on PATH, which reads launch/env.sh; install it") from None
    if done.returncode:
        raise UserError(f"{ENVIRONMENT} refuses (exit code {done.returncode}), see above")
    entries = os.fsdecode(done.stdout).split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    supervise.parse(argv)  # --help and mistakes first
    os.environ.update(environment_of_launches())
    return supervise.main(argv)
