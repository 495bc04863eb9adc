"""The floors of the project: who may import whom."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import sysconfig
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted(p for folder in ("recipe", "data_prep", "launch") for p in (ROOT / folder).rglob("*.py"))
# Rooms of recipe/ by floors: one imports rooms of the floors above its own line, never one beside it.
FLOORS = (
    ("base",),
    ("model", "data", "planner"),
    ("scaling",),
    ("huggingface",),
    ("run",),
    ("reading",),
    ("engine",),
    ("telemetry", "checkpoints"),
    ("safety", "evaluation"),
    ("training",),
)
ROOMS = [room for floor in FLOORS for room in floor]
WITHOUT_TORCH = {"recipe.base", "recipe.planner", "recipe.scaling", "recipe.reading", "recipe.run"}
DATA_JOBS_MAY_IMPORT = {
    "data_prep",
    "recipe.base",
    "recipe.data.indexed",
    "recipe.data.mixture",
    "recipe.data.token_folder",
    "recipe.huggingface.split_patterns",
    "recipe.huggingface.tokenizer_folder",
}
IMPORT_NAMES = {
    "megatron_core": "megatron",
    "mlflow_skinny": "mlflow",
    "pyyaml": "yaml",
    "phonenumberslite": "phonenumbers",
}  # of distributions whose module has another name
IMPORTED_BY_OTHERS = {"accelerate": "lm_eval.models.huggingface"}  # which does not name it itself
TOOLS = {"mdformat_gfm", "mypy", "pytest", "pytest_xdist", "ruff", "types_pyyaml"}
MOST_MODULES = {"recipe": 12, "launch": 20, "data_prep": 20}  # of a folder
IMPORTED_IF_FOUND = {"kernels"}  # by transformers, which takes any module of this name for its package


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
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


def ours(path: Path) -> set[str]:
    """What a file imports of this project; `import recipe` alone is the version."""
    return {i for i in imports(path) if i.split(".")[0] in MOST_MODULES} - {"recipe"}


def below_the_floor_of(room: str) -> set[str]:
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    return {f"recipe.{other}" for rooms in FLOORS[:floor] for other in rooms} | {f"recipe.{room}"}


def test_every_room_has_a_floor():
    assert sorted(p.parent.name for p in (ROOT / "recipe").glob("*/__init__.py")) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below(room):
    for path in (ROOT / "recipe" / room).rglob("*.py"):
        assert {i for i in ours(path) if not below(i, below_the_floor_of(room))} == set(), path


def test_data_jobs_need_little_of_the_recipe():
    for path in (ROOT / "data_prep").rglob("*.py"):
        assert {i for i in ours(path) if not below(i, DATA_JOBS_MAY_IMPORT)} == set(), path


def test_deepspeed_is_imported_from_the_engine_on():
    floor = next(number for number, rooms in enumerate(FLOORS) if "engine" in rooms)
    upper = {f"recipe.{room}" for rooms in FLOORS[floor:] for room in rooms}
    users = {module_name(p) for p in FILES if below("deepspeed", {i.split(".")[0] for i in imports(p)})}
    assert users
    assert {user for user in users if not below(user, upper)} == set()


def private_names(path: Path) -> set[str]:
    """What a file uses of DeepSpeed and torch beyond `import deepspeed` and names without an underscore."""
    private = {i for i in imports(path) if i.startswith("deepspeed.")}
    private |= {n for n in imports(path) | imported_names(path) if n.startswith(("torch.", "deepspeed.")) and "._" in n}
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)]
    chains = {ast.unparse(node) for node in nodes}
    of_engine = (
        "engine._",
        "self._engine._",
        "engine.optimizer._",
        "self._engine.optimizer._",
        "torch._",
        "distributed_c10d.",
    )
    return private | {c for c in chains if c.startswith(of_engine)}


def test_names_that_are_not_public_are_in_one_module():
    users = {module_name(p): names for p in FILES if below(module_name(p), {"recipe"}) and (names := private_names(p))}
    assert "recipe.engine.deepspeed_private" in users
    # The model is below the engine; its two settings and dispatch modes have no public name in every torch that is supported.
    assert users.keys() == {"recipe.engine.deepspeed_private", "recipe.model.fusion", "recipe.model.recompute"}, users
    assert all(name.startswith("torch.utils._python_dispatch") for name in users["recipe.model.recompute"])
    assert all(name.startswith("torch._dynamo") for name in users["recipe.model.fusion"])


def test_what_is_checked_and_planned_before_a_run_needs_no_torch():
    for path in FILES:
        if below(module_name(path), WITHOUT_TORCH):
            assert not {i.split(".")[0] for i in imports(path)} & {"torch", "transformers", "deepspeed"}, path


def test_no_folder_is_crowded():
    for folder in {path.parent for path in FILES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES[folder.relative_to(ROOT).parts[0]], folder


def test_no_module_hides_one_of_the_standard_library():
    # A script's folder comes first on sys.path, so a data_prep/tokenize.py would shadow `tokenize` for itself.
    for path in FILES:
        assert path.stem not in sys.stdlib_module_names or path.stem == "__init__", path


def hides_a_dependency(name: str) -> bool:
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return name in IMPORTED_IF_FOUND or PathFinder.find_spec(name, installed) is not None


def test_no_script_hides_a_dependency():
    # For the same reason: the scripts of lm_eval import the package `evaluate`, so recipe/evaluate_model.py is not
    # called evaluate.py, and its work is not in a folder of that name.
    assert hides_a_dependency("evaluate")
    for folder in (*MOST_MODULES, "benchmarks"):
        names = {
            path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert {name for name in names if hides_a_dependency(name)} == set(), folder


def test_the_native_scans_are_used_with_their_character_table():
    users = {module_name(p) for p in FILES if "data_prep._native" in imported_names(p)}
    assert users == {"data_prep.curation.characters"}


def test_configurations_are_read_by_one_base_class():
    # `Section` refuses unknown keys; a model of its own settings may forget to.
    users = {module_name(p) for p in FILES if imported_names(p) & {"pydantic.ConfigDict", "pydantic.BaseModel"}}
    assert users == {"recipe.base.strict", "recipe.describe_settings"}


def declared_extras() -> dict[str, set[str]]:
    """The modules of setup.cfg's packages by extra; those that every use needs at ""."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {extra: {requirement(line) for line in re.findall(r"^\w.*", text, re.M)} for extra, text in lists.items()}


def requirement(line: str) -> str:
    name = re.match(r"[\w-]+", line)[0].lower().replace("-", "_")
    return IMPORT_NAMES.get(name, name)


def packages_of(paths: list[Path]) -> dict[str, set[str]]:
    """Packages of others -> the files that import them."""
    users: dict[str, set[str]] = {}
    for path in paths:
        for package in {i.split(".")[0] for i in imports(path)} - sys.stdlib_module_names - {*MOST_MODULES, "tests"}:
            users.setdefault(package, set()).add(module_name(path))
    return users


def test_every_package_that_is_imported_is_declared_and_every_declared_one_is_imported():
    extras = declared_extras()
    of_tests = {p for p in extras.pop("test") if p != "deepspeed_moe_recipe"} - TOOLS
    declared, used = set().union(*extras.values()), set(packages_of(FILES))
    every_import = set().union(*map(imports, FILES))
    assert used - declared == set()
    assert declared - used == {p for p, user in IMPORTED_BY_OTHERS.items() if user in every_import}
    assert of_tests - set(packages_of(sorted((ROOT / "tests").rglob("*.py")))) == set()


def test_everything_is_installed_for_the_tests():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = set(config["options.extras_require"]) - {"test"}
    (everything,) = re.findall(r"deepspeed-moe-recipe\[(.*)\]", config["options.extras_require"]["test"])
    assert set(everything.split(",")) == extras
    assert ".[test]" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("prefixes", "extras"),
    [
        (DATA_JOBS_MAY_IMPORT, {"", "data", "ray"}),
        ({"recipe.base", "recipe.planner", "recipe.scaling", "recipe.reading", "recipe.run", "recipe.report", "recipe.watch"}, {"", "prometheus"}),
        ({"recipe"}, {"", "train", "downstream", "prometheus", "wandb", "mlflow"}),
    ],
    ids=["data jobs", "planning and reading", "training"],
)  # fmt: skip
def test_a_use_needs_only_its_extras(prefixes, extras):
    declared = declared_extras()
    allowed = set().union(*(declared[extra] for extra in extras))
    users = packages_of([p for p in FILES if below(module_name(p), prefixes)])
    assert {package: modules for package, modules in users.items() if package not in allowed} == {}


@cache
def imported_names(path: Path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
