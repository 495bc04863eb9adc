"""The floors of the project: who may import whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted(p for folder in ("recipe", "data_prep", "launch") for p in (ROOT / folder).rglob("*.py"))
# floor -> the parts of this project that it may import
MAY_IMPORT = {
    "recipe.base": {"recipe.base"},
    "recipe.model": {"recipe.base", "recipe.model"},
    "recipe.data": {"recipe.base", "recipe.data"},
    "recipe.planner": {"recipe.base", "recipe.planner"},
    "recipe.reading": {"recipe.base", "recipe.planner", "recipe.reading"},
    "recipe.huggingface": {"recipe.base", "recipe.model", "recipe.data", "recipe.huggingface"},
    "recipe.run": {"recipe.base", "recipe.model", "recipe.data", "recipe.huggingface", "recipe.run"},
    "data_prep": {
        "data_prep",
        "recipe.base.arguments",
        "recipe.base.errors",
        "recipe.base.files",
        "recipe.base.output_paths",
        "recipe.base.settings",
        "recipe.base.strict",
        "recipe.data.indexed",
        "recipe.data.mixture",
        "recipe.data.token_folder",
    },
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, late imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module)
    return found


def below(name: str, prefixes: set[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def test_there_are_files_to_look_at():
    assert len(FILES) > 30


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_imports_only_floors_below(floor):
    ours = {"recipe", "data_prep", "launch"}
    for path in FILES:
        if below(module_name(path), {floor}):
            foreign = {i for i in imports(path) if i.split(".")[0] in ours and not below(i, MAY_IMPORT[floor])}
            # `import recipe` alone is the version
            assert not foreign - {"recipe"}, f"{path.relative_to(ROOT)} imports {foreign}"


def test_only_the_run_floor_imports_deepspeed():
    users = {module_name(p) for p in FILES if below("deepspeed", {i.split(".")[0] for i in imports(p)})}
    assert users
    assert all(below(user, {"recipe.run"}) for user in users), users


def test_the_ground_floor_and_the_planner_do_not_import_torch():
    for path in FILES:
        if below(module_name(path), {"recipe.base", "recipe.planner", "recipe.reading"}):
            assert not {i.split(".")[0] for i in imports(path)} & {"torch", "transformers", "deepspeed"}, path


def test_no_module_hides_one_of_the_standard_library():
    # A script's folder comes first on sys.path, so a data_prep/tokenize.py would shadow `tokenize` for itself.
    for path in FILES:
        assert path.stem not in sys.stdlib_module_names or path.stem == "__init__", path


def test_the_native_scans_are_used_with_their_character_table():
    users = {module_name(p) for p in FILES if "data_prep._native" in imported_names(p)}
    assert users == {"data_prep.characters"}


def imported_names(path: Path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
