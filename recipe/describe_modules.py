#!/usr/bin/env python3
"""Print the tree of the code, folder by folder, from the first line of each module's docstring: docs/architecture.md."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

from recipe.base.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("recipe", "data_prep", "launch")


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, or of its first line where the sentence goes on; empty without one."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").split(". ")[0].removesuffix(".").replace("|", "\\|")


def folders(root: Path) -> Iterator[Path]:
    """The packages of a part, each before those inside it."""
    for init in sorted(root.rglob("__init__.py"), key=lambda path: path.parent.parts):
        yield init.parent


def tree() -> str:
    """One table a folder: its modules and what each is for."""
    sections = []
    for folder in (folder for part in PARTS for folder in folders(ROOT / part)):
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        if not modules:
            continue
        name = folder.relative_to(ROOT).as_posix()
        purpose = first_line(folder / "__init__.py")
        table = markdown_table(["module", "what it is for"], [[f"`{p.name}`", first_line(p)] for p in modules], left=2)
        sections.append(f"### {name}\n\n{purpose}{'.' if purpose else ''}\n\n{table}")
    return "\n\n".join(sections)


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    print(tree())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
