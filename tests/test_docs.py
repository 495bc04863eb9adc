"""What the documents say of files and numbers is what the files have."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.conftest import ROOT, run_command
from tests.in_process import run_script

pytestmark = pytest.mark.xdist_group(
    "planner"
)  # beside tests/launch/test_plan.py: they share what the planner has searched


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{n}.md" for n in ("data", "design", "exports", "performance", "reliability", "runbook")),
    ],
)
def test_every_path_that_is_named_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:recipe|data_prep|launch|ds_configs|docs|tests|benchmarks)/[\w./-]*\w", text))
    placeholders = {"recipe/configs/runs/X.yaml", "ds_configs/Y.json", "data_prep/NAME.py"}
    assert len(named) > 5
    for name in named - placeholders:
        assert (ROOT / name).exists(), name


def test_the_readmes_commands_are_the_makefiles():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_data_plan_is_what_its_script_prints():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    printed = run_script("benchmarks/data_plan.py", "--terabytes", 15, "--cores", 512)
    assert printed.returncode == 0, printed.stderr
    assert between(text, "plan") == printed.stdout.strip()


def test_the_measured_table_is_that_of_the_committed_result():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    printed = run_script("benchmarks/data_prep.py", "--table", "benchmarks/results/data_prep.json")
    assert printed.returncode == 0, printed.stderr
    assert between(text, "measured") == printed.stdout.strip()


DESIGN_POINT = (
    "launch/plan.py", "--model", "recipe/configs/models/30b-a3b", "--ds-config", "ds_configs/a100_256.json", "--interconnect", "400g",
)  # fmt: skip


def test_the_plan_of_the_design_point_is_what_the_planner_prints():
    printed = run_script(*DESIGN_POINT)
    assert printed.returncode == 0, printed.stderr
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert between(text, "flagship") == f"```text\n{printed.stdout.strip()}\n```"


@pytest.mark.parametrize("name", ["networks", "alternatives", "scaling"])
def test_the_planners_tables_are_what_it_prints(name):
    printed = run_script("recipe/describe_plans.py", name)
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "design.md").read_text(encoding="utf-8"), name) == printed.stdout.strip()


def test_the_models_are_those_that_are_shipped():
    printed = run_script("recipe/describe_models.py")
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "design.md").read_text(encoding="utf-8"), "models") == printed.stdout.strip()


def test_the_table_of_growth_is_that_of_the_committed_result():
    printed = run_script("benchmarks/data_growth.py", "--table", "benchmarks/results/data_growth.json")
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert between(text, "growth") == printed.stdout.strip()


def test_the_measured_layer_is_that_of_the_committed_result():
    printed = run_script("benchmarks/moe_layer.py", "--table", "benchmarks/results/moe_layer.json")
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "design.md").read_text(encoding="utf-8"), "layer") == printed.stdout.strip()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("faults", ("tests/faults/table.py", "benchmarks/results/faults.jsonl")),
        ("checkpoint", ("benchmarks/checkpoint.py", "--table", "benchmarks/results/checkpoint.json")),
    ],
)
def test_the_tables_of_reliability_are_those_of_the_committed_results(name, words):
    printed = run_script(*words)
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"), name) == printed.stdout.strip()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compiled", ("recipe/describe_plans.py", "compiled")),
        ("train_step", ("benchmarks/train_step.py", "--table", "benchmarks/results/train_step.json")),
        ("train_step_h200", ("benchmarks/train_step.py", "--table", "benchmarks/results/train_step_h200.json")),
        ("loss_curve", ("benchmarks/loss_curve.py", "--table", "benchmarks/results/loss_curve.json")),
    ],
)
def test_the_tables_of_performance_are_what_their_scripts_print(name, words):
    printed = run_script(*words)
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), name) == printed.stdout.strip()


def test_the_table_of_clients_is_that_of_the_committed_result():
    printed = run_script("tests/clients/check.py", "--table", "benchmarks/results/clients.json")
    assert printed.returncode == 0, printed.stderr
    assert between((ROOT / "docs" / "exports.md").read_text(encoding="utf-8"), "clients") == printed.stdout.strip()


def test_the_configuration_is_what_the_schemas_say():
    printed = run_script("recipe/describe_settings.py")
    assert printed.returncode == 0, printed.stderr
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == printed.stdout


def commands_of(page: str) -> list[list[str]]:
    """The indented command lines of a page, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    |       )((?:python|deepspeed|sbatch|launch/\S+) .*)$", text, re.M)
    return [shlex.split(line, comments=True) for line in lines if "[" not in line and "..." not in line]


COMMANDS = [
    words
    for page in ("README.md", "docs/runbook.md", "docs/data.md", "docs/performance.md")
    for words in commands_of(page)
]


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 15


# It installs signal handlers and a thread before it looks at its words.
AS_A_PROCESS = ("recipe/train.py",)


@pytest.mark.parametrize("script", sorted({w for words in COMMANDS for w in words if w.endswith((".py", "train.sh"))}))
def test_the_options_of_documented_commands_exist(script):
    started = script in (*AS_A_PROCESS, "launch/train.sh")
    python = [sys.executable] if script.endswith(".py") else []
    done = run_command(*python, script, "--help") if started else run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    for words in COMMANDS:
        if script in words:
            asked = {w.split("=")[0] for w in words[words.index(script) :] if w.startswith("--")} - {"--"}
            assert {option for option in asked if option not in done.stdout} == set(), words


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS if w[1] in ("launch/plan.py", "recipe/describe_models.py")], ids=" ".join
)
def test_commands_that_plan_run_as_they_stand(words, tmp_path):
    words = [str(tmp_path / w) if w == "mine.json" else w for w in words]
    done = run_script(*words[1:])
    assert done.returncode == 0, done.stderr


def between(text: str, name: str) -> str:
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()
