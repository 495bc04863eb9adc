"""The pages of the documentation and the commands that they show; a folder in which these run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import CPU, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ds_configs/README.md", *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
_COMMAND = re.compile(r"^ *(?:\w+=\S+ )*((?:python|deepspeed|sbatch|launch/\S+|moe-\S+) .*)$", re.M)


def bash_blocks(page: Path, section: str = "") -> list[str]:
    """The ```bash blocks of a page, or of its section with this heading; those in lists without their indent."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in re.findall(r"^( *)```bash\n(.*?)^ *```$", text, re.M | re.S)]  # fmt: skip


def commands(page: Path) -> list[list[str]]:
    """The command lines of the ```bash blocks of a page as words, continued lines joined, variables before them left out."""
    blocks = "\n".join(bash_blocks(page)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in _COMMAND.findall(blocks)]


def checkout(folder: Path) -> Path:
    """A folder that looks like this checkout, whose `work/` is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in ROOT.iterdir():
        if entry.name not in ("work", ".git"):
            (folder / entry.name).symlink_to(entry)
    return folder


def run_as_it_stands(code: str, folder: Path, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """A block of shell commands in a folder as after `source launch/env.sh`, which ends at the first that fails.

    stdout holds stderr too.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", code], cwd=folder, env={**CPU, "PATH": path, "PYTHONPATH": str(folder)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
    )  # fmt: skip
