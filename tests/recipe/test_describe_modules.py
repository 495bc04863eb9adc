"""The architecture page lists every module as its docstring has it, and every path that it names is there."""

from __future__ import annotations

import re

from recipe.describe_modules import PARTS, folders, tree
from tests.conftest import ROOT
from tests.test_docs import between
from tests.test_layout import FLOORS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_page_has_the_tree_as_it_is():
    assert between(PAGE, "modules") == tree(), (
        "python recipe/describe_modules.py prints what docs/architecture.md lacks"
    )


def test_every_module_says_what_it_is_for():
    for part in PARTS:
        for folder in folders(ROOT / part):
            for module in folder.glob("*.py"):
                text = module.read_text(encoding="utf-8")
                assert not text or re.match(r'(#!.*\n)?"""\S', text), module


def test_the_floors_are_those_that_the_layout_test_keeps():
    drawn = PAGE.split("```")[1].strip().splitlines()
    assert [tuple(line[:38].split()) for line in drawn[:-1]] == list(FLOORS)
