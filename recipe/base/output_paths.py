"""Whether a path can be written, told before anything costs and without making anything.

Looking is enough: a file system that is mounted read-only, permissions and files that stand in the way are seen at the
nearest folder that exists.
"""

from __future__ import annotations

import os
from pathlib import Path

from recipe.base.errors import UserError

# File systems that are windows into the kernel: root may write to their folders, but nobody can make a file there
# (filesystems(5), and the kernel's Documentation/filesystems).
KERNELS_OWN = {"proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs", "pstore", "bpf",
               "configfs", "efivarfs", "selinuxfs", "binfmt_misc", "fusectl", "mqueue", "rpc_pipefs", "nsfs"}  # fmt: skip
GLOB_CHARACTERS = "*?[]"


def folder_problem(path: Path) -> str | None:
    """Why nothing can be written to the folder `path`, which need not exist yet; None if it can."""
    path = Path(os.path.abspath(path))
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        return f"{existing} is no folder" + ("" if existing == path else ", so nothing can be made below it")
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} may not be written to"
    if (kind := _file_system(existing)) in KERNELS_OWN:
        return f"{existing} is of the kernel's file system {kind}, which holds no files of users"
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in path.relative_to(existing).parts):
        return f"{path} has a name of more than {longest} bytes"
    return None


def file_problem(path: Path) -> str | None:
    """Why the file `path` cannot be written, whose folder need not exist yet."""
    if path.is_dir():
        return f"{path} is a folder, not a file"
    return folder_problem(path.parent)


def check_output_folder(name: str, path: Path) -> None:
    """Raises UserError if nothing can be written to the folder that `name`, an option or a key, gives."""
    if (problem := folder_problem(path)) is not None:
        raise UserError(f"{name} {path} cannot be written: {problem}; choose another folder")


def check_output_file(name: str, path: Path) -> None:
    """Raises UserError if the file that `name` gives cannot be written."""
    if (problem := file_problem(path)) is not None:
        raise UserError(f"{name} {path} cannot be written: {problem}; choose another path")


def partial_export(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def check_export_folder(output: Path) -> None:
    """Raises UserError if an export cannot be written to `output`, which must not exist."""
    if output.exists():
        raise UserError(f"--output {output} exists; choose a new folder, or remove it")
    check_output_folder("--output", partial_export(output))


def glob_problem(path: Path) -> str | None:
    """Why DeepSpeed would not find its files below a path: it looks for them by patterns, without escaping the folders."""
    absolute = os.path.abspath(path)
    if not any(character in absolute for character in GLOB_CHARACTERS):
        return None
    return (
        f"{absolute} holds one of {' '.join(GLOB_CHARACTERS)}, from which DeepSpeed cannot load checkpoints; rename it"
    )


def _file_system(folder: Path) -> str | None:
    """The type of the file system that a folder is on, by mountinfo (proc(5)); None where that does not tell."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(" - ")[1].split()[0] for line in mounts if line.split()[2] == number), None)
