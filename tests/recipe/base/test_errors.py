"""Which rank of a launch tells the user what is wrong."""

from __future__ import annotations

import pickle

import pytest

from recipe.base import errors
from recipe.base.errors import FIRST_RANK_SPEAKS_S, ConfigError, UserError, exit_on_user_error


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
    monkeypatch.setattr(errors.socket, "gethostname", lambda: "host")
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
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert interrupted() == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


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
