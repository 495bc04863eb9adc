"""The architecture page lists every module as its docstring has it, and every path that it names is there."""

from __future__ import annotations

import re

from recipe.describe_modules import PARTS, folders
from tests.conftest import ROOT
from tests.test_layout import FLOORS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def fence(begins: str) -> str:
    """The drawing of the page that begins with a word."""
    (drawing,) = re.findall(rf"^```text\n({begins}.*?)\n```$", PAGE, re.M | re.S)
    return drawing


def test_every_module_says_what_it_is_for():
    for part in PARTS:
        for folder in folders(ROOT / part):
            for module in folder.glob("*.py"):
                text = module.read_text(encoding="utf-8")
                assert not text or re.match(r'(#!.*\n)?"""\S', text), module


def test_the_floors_are_those_that_the_layout_test_keeps():
    drawn = fence("base").splitlines()
    assert [tuple(line[:38].split()) for line in drawn[:-1]] == list(FLOORS)


def test_the_tree_has_every_folder_of_the_code():
    names = re.findall(r"^( *)([\w/]+)/ ", fence("recipe/"), re.M)
    drawn, parent = set(), ""
    for indent, name in names:
        parent = parent if indent else name
        drawn.add(f"{parent}/{name}" if indent else name)
    assert {name for name in drawn if not (ROOT / name).is_dir()} == set()
    rooms = {
        str(f.relative_to(ROOT)) for part in PARTS for f in folders(ROOT / part) if len(f.relative_to(ROOT).parts) < 3
    }
    assert rooms - drawn == set()
