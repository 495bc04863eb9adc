#!/usr/bin/env python3
"""How many modules of the project one opens to follow a subject: those it imports, directly or not, late imports included.

Prints JSON: modules and lines by subject, and which modules they are with --names. Any checkout can be measured.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402

# Where a subject begins, in this tree and in older ones.
SUBJECTS = {
    "train": ("recipe/train.py",),
    "one step": ("recipe/engine/step.py", "recipe/run/step.py"),
    "MoE layer": ("recipe/engine/moe/autoep.py", "recipe/run/autoep.py"),
    "checkpoint": ("recipe/checkpoints/store.py", "recipe/run/checkpoint.py"),
}


def file_of(checkout: Path, module: str) -> Path | None:
    """The file of a module of the project; None for one of others, and for what is no module."""
    path = checkout.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(checkout: Path, path: Path) -> set[Path]:
    """The project's files that a file imports by name; `from package import module` counts the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {file for name in names if (file := file_of(checkout, name)) is not None and file.name != "__init__.py"}


def modules_to_open(checkout: Path, start: Path) -> list[Path]:
    """`start` and all that it leads to, sorted."""
    reached, waiting = {start}, [start]
    while waiting:
        new = imported(checkout, waiting.pop()) - reached
        reached |= new
        waiting += new
    return sorted(reached)


def measure(checkout: Path, names: bool = False) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, object]] = {}
    for subject, candidates in SUBJECTS.items():
        start = next((checkout / path for path in candidates if (checkout / path).is_file()), None)
        if start is None:
            raise UserError(f"{checkout} has none of {', '.join(candidates)}; give a checkout of this project")
        files = modules_to_open(checkout, start)
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        results[subject] = {"start": str(start.relative_to(checkout)), "modules": len(files), "lines": lines}
        if names:
            results[subject]["names"] = [str(file.relative_to(checkout)) for file in files]
    return results


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python benchmarks/modules_to_open.py ../checkout-of-before --names"
    )
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--names", action="store_true", help="list the modules too")
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.checkout.resolve(), args.names), indent=2))


if __name__ == "__main__":
    sys.exit(main())
