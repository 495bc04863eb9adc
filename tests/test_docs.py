"""What the documents say of files and numbers is what the files have."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command
from tests.documentation import PAGES, commands
from tests.in_process import run_script
from tests.printed import CONFIGURATION, PRINTED, between, block, formatted
from tests.test_commands import WITHOUT_A_COMMAND

pytestmark = pytest.mark.xdist_group(
    "planner"
)  # beside tests/launch/test_plan.py: they share what the planner has searched
PLACEHOLDERS = {"recipe/configs/runs/X.yaml", "ds_configs/Y.json", "data_prep/NAME.py"}
# what others start or import, and what prints the documentation
NOT_FOR_USERS = {"__init__.py", "supervise.py", "plan_arguments.py", "proxies.py", "preflight_ranks.py", "train_command.py", "quickstart.py", "quickstart_summary.py", "env.sh", "data_prep.slurm", *(f"describe_{of}.py" for of in ("models", "modules", "plans", "settings"))}  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# the log names files as they were called at its time
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=name_of)
def test_every_path_and_link_of_a_page_exists(page):
    text = re.sub(r"https?:[^)\s]+", "", page.read_text(encoding="utf-8"))
    for name in (
        set(re.findall(r"(?:recipe|data_prep|launch|ds_configs|docs|tests|benchmarks)/[\w./-]*\w", text)) - PLACEHOLDERS
    ):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link: lower case, without marks, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_make_targets_of_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_readme_is_short_and_names_every_command_and_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for folder in ("data_prep", "launch", "recipe"):
        for script in (ROOT / folder).iterdir():
            if script.suffix in (".py", ".sh", ".slurm") and script.name not in NOT_FOR_USERS:
                assert re.search(rf"\b{re.escape(script.name)}", text), script
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page


@pytest.mark.parametrize(("page", "name"), PRINTED, ids=lambda x: x)
def test_what_a_page_prints_is_what_its_command_prints(page, name):
    printed = run_script(*PRINTED[page, name])
    assert printed.returncode == 0, printed.stderr
    text = (ROOT / page).read_text(encoding="utf-8")
    assert between(text, name) == block(name, printed.stdout), "python -m tests.printed writes the pages anew"


def test_no_printed_part_is_without_its_command():
    pages = [ROOT / "README.md", ROOT / "ds_configs/README.md", *(ROOT / "docs").glob("*.md")]
    marks = {
        (str(page.relative_to(ROOT)), name)
        for page in pages
        for name in re.findall(r"<!-- /(\w+) -->", page.read_text(encoding="utf-8"))
    }
    assert marks == set(PRINTED)


def test_the_configuration_is_what_the_schemas_say():
    page, words = CONFIGURATION
    printed = run_script(*words)
    assert printed.returncode == 0, printed.stderr
    assert (ROOT / page).read_text(encoding="utf-8") == formatted(printed.stdout)


COMMANDS = [words for page in PAGES for words in commands(page)]


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 40


# It installs signal handlers and a thread before it looks at its words.
AS_A_PROCESS = ("recipe/train.py",)
SUBCOMMANDS = {"recipe/evaluate_model.py": ("held-out", "downstream", "needle")}


def script_of(words: list[str]) -> tuple[str, ...]:
    """The script that a command line starts, and its subcommand."""
    script = next((w for w in words if w.endswith((".py", ".sh", ".slurm"))), "")
    following = words[words.index(script) + 1 :] if script else []
    return script, *(w for w in following[:1] if w in SUBCOMMANDS.get(script, ()))


@pytest.mark.parametrize("script", sorted({script_of(words) for words in COMMANDS} - {("",)}), ids=" ".join)
def test_the_options_of_documented_commands_exist(script):
    path, *subcommand = script
    if path in AS_A_PROCESS:
        done = run_command(sys.executable, path, "--help")
    else:  # train.sh and train.slurm hand their words to the supervisor
        done = run_script("launch/supervise.py" if path.startswith("launch/train.") else path, *subcommand, "--help")
    assert done.returncode == 0, done.stderr
    for words in COMMANDS:
        if script_of(words) == script:
            options = {w.split("=")[0] for w in words[words.index(path) :] if w.startswith("--")} - {"--"}
            assert {option for option in options if option not in done.stdout} == set(), words


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS if w[1] in ("launch/plan.py", "recipe/describe_models.py")], ids=" ".join
)
def test_commands_that_plan_run_as_they_stand(words, tmp_path):
    words = [f"{tmp_path}/{w.replace('/', '_')}" if words[at - 1] == "--write" else w for at, w in enumerate(words)]
    done = run_script(*words[1:])
    assert done.returncode == 0, done.stderr


def test_the_installation_page_lists_the_console_commands():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    entries = config["options.entry_points"]["console_scripts"].strip().splitlines()
    commands_of_setup = dict(re.fullmatch(r"(\S+) = (\S+):main", entry).groups() for entry in entries)
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(moe-\S+)` \| `(\S+)`", page, re.M))
    # moe-train sources launch/env.sh itself, as launch/train.sh does
    named = {"launch.train_command": "launch/train.sh"}
    assert table == {
        name: named.get(module, f"{module.replace('.', '/')}.py") for name, module in commands_of_setup.items()
    }
    for module, reason in WITHOUT_A_COMMAND.items():
        if "deepspeed" in reason:
            assert f"`{module.replace('.', '/')}.py`" in page.split("have no short name")[1], module
