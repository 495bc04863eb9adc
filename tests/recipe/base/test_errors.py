"""Which rank of a launch tells the user what is wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from recipe.base import errors
from recipe.base.errors import (
    EXTRAS,
    EXTRAS_OF,
    FIRST_RANK_SPEAKS_S,
    ConfigError,
    UserError,
    exit_on_user_error,
    how_to_install,
    of_key,
)
from recipe.telemetry.prometheus import Exporter
from tests.conftest import ROOT
from tests.test_layout import declared_extras


@exit_on_user_error
def failing() -> None:
    raise UserError("the bridge is out; take the ferry")


@pytest.mark.parametrize(
    ("rank", "local_rank", "waits", "message"),
    [
        (None, None, [], "error: the bridge is out; take the ferry\n"),
        ("0", "0", [], "error: the bridge is out; take the ferry\n"),
        ("8", "0", [], "error (host): the bridge is out; take the ferry\n"),
        # Ended by the launcher while it waits, unless the error is its own.
        ("9", "1", [FIRST_RANK_SPEAKS_S], "error (host, rank 9): the bridge is out; take the ferry\n"),
    ],
)
def test_the_first_rank_of_a_host_speaks_and_the_others_let_it(rank, local_rank, waits, message, monkeypatch, capsys):
    slept: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", slept.append)
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert failing() == 2
    assert slept == waits
    assert capsys.readouterr().err == message


def test_ctrl_c_is_one_sentence_and_code_130(capsys):
    @exit_on_user_error
    def interrupted(*advice: str) -> None:
        raise KeyboardInterrupt(*advice)

    assert interrupted() == 130
    assert capsys.readouterr().err == "interrupted; run the same command to start it again\n"
    assert interrupted("this is kept") == 130
    assert capsys.readouterr().err == "interrupted; this is kept\n"


def test_a_refusal_names_its_key_once():
    def refuse(message: str) -> None:
        raise UserError(message)

    for message, told in (("x is not there", "data.tokens: x is not there"), ("data.tokens x is", "data.tokens x is")):
        with pytest.raises(UserError) as error:
            of_key("data.tokens", refuse, message)
        assert str(error.value) == told


class Located(UserError):
    """With arguments of its own, as those to come may have."""

    def __init__(self, path: str, line: int):
        self.line = line
        super().__init__(f"{path} line {line} is wrong")


@pytest.mark.parametrize("error", [ConfigError("a.yaml", ["x is wrong", "y too"]), Located("b", 7), UserError("plain")])
def test_an_error_comes_out_of_a_worker_process_as_it_was(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


@pytest.fixture
def blocked(monkeypatch):
    """Modules that cannot be imported, as if their package were not installed."""
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


def test_a_late_import_of_a_missing_package_says_which_extra_to_install(blocked, capsys):
    blocked("prometheus_client")
    assert exit_on_user_error(lambda: Exporter(1, "run"))() == 2
    assert capsys.readouterr().err == (
        "error: the Python package prometheus_client is not installed: pip install -e '.[prometheus]' for Prometheus\n"
    )


def test_a_package_of_two_extras_says_what_each_is_for():
    assert how_to_install("tokenizers") == (
        "the Python package tokenizers is not installed: pip install -e '.[train]' for training, evaluation, export, "
        "or pip install -e '.[data]' for data jobs"
    )


def test_another_python_than_the_installed_one_is_told_in_a_sentence():
    # One process: a Python without packages, which imports the project from its folder.
    words = [sys.executable, "-S", "-m", "launch.plan", "--help"]
    done = subprocess.run(words, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"is not installed for {sys.executable}; run `make install` once and `source launch/env.sh`" in done.stderr


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("recipe.somewhere", "recipe_native"),  # no package of an extra: a defect of ours
        ("users_module", "torch"),  # not our import
    ],
)
def test_other_failed_imports_keep_their_traceback(module, package, blocked):
    blocked(package)
    with pytest.raises(ModuleNotFoundError):
        exit_on_user_error(lambda: exec(f"import {package}", {"__name__": module}))()


def failed_import(module: str, package: str) -> ModuleNotFoundError:
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(f"import {package}", {"__name__": module})
    return caught.value


def test_a_script_whose_modules_cannot_be_imported_ends_with_the_same_sentence(blocked, monkeypatch, capsys):
    blocked("torch", "absent")
    others: list[str] = []
    monkeypatch.setattr("sys.excepthook", lambda kind, error, trace: others.append(str(error)))
    errors.explain_missing_packages()
    error = failed_import("recipe.training.start", "torch")
    with pytest.raises(SystemExit) as exit_:
        sys.excepthook(type(error), error, error.__traceback__)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: the Python package torch is not installed: pip install")
    for module, package in (("recipe.x", "absent"), ("__main__", "torch"), ("users_module", "torch")):
        error = failed_import(module, package)
        sys.excepthook(type(error), error, error.__traceback__)
    assert len(others) == 3


def test_importing_the_project_explains_missing_packages():
    # One process: what the interpreter makes of the hook's exit code can be seen from outside alone.
    code = "import sys; sys.modules['torch'] = None; import recipe.engine.collectives"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install -e '.[train]'" in done.stderr


def test_the_extras_of_setup_cfg_are_those_of_the_sentences():
    extras = declared_extras()
    of_core = extras.pop("")
    expected = {package: tuple(extra for extra in EXTRAS if package in extras[extra]) for package in EXTRAS_OF}
    assert expected == EXTRAS_OF
    assert {p for extra in EXTRAS for p in extras[extra]} - of_core == set(EXTRAS_OF)
    modules = {"pyyaml": "yaml"}
    assert {modules.get(p, p) for p in of_core} == set(errors.CORE)


def test_output_that_is_read_in_part_leaves_no_traceback():
    # One process: a pipe whose reader has gone.
    code = "from recipe.base.errors import exit_on_user_error as e; import sys; sys.exit(e(lambda: print('line\\n' * 10**6))())"
    reader = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdout.readline() == b"line\n"
    reader.stdout.close()
    assert (reader.stderr.read(), reader.wait()) == (b"", 141)
