"""Errors that a user can act on, and how a script reports them.

A `UserError` is one sentence that says what is wrong and what to do about it. Scripts print it without
a traceback and exit with code 2; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

INTERRUPTED = 128 + 2  # exit code after ctrl-C, as of a shell
READER_GONE = 128 + 13  # after SIGPIPE
OURS = ("recipe", "data_prep", "launch")
# Packages that only some uses need -> the extras of setup.cfg that bring them, by what they are for.
EXTRAS = {"train": "training, evaluation, export", "data": "data jobs",
          "downstream": "downstream tasks", "prometheus": "Prometheus", "ray": "data jobs on Ray",
          "wandb": "Weights & Biases", "mlflow": "MLflow"}  # fmt: skip
EXTRAS_OF = {
    "accelerate": ("downstream",),
    "datasets": ("data", "downstream"),
    "deepspeed": ("train",),
    "eldc": ("data",),
    "fastokens": ("data",),
    "ftfy": ("data",),
    "huggingface_hub": ("train",),
    "isal": ("data",),
    "lm_eval": ("downstream",),
    "mlflow": ("mlflow",),
    "opencc": ("data",),
    "phonenumbers": ("data",),
    "publicsuffixlist": ("data",),
    "prometheus_client": ("prometheus",),
    "pyarrow": ("data",),
    "ray": ("ray",),
    "safetensors": ("train",),
    "tensorboard": ("train",),
    "tokenizers": ("train", "data"),
    "torch": ("train",),
    "transformers": ("train", "data"),
    "wandb": ("wandb",),
    "zstandard": ("data",),
}
# Packages of every use: where one is not there, this is not the Python that `make install` made.
CORE = ("jinja2", "markupsafe", "numpy", "orjson", "pydantic", "rich", "scipy", "xxhash", "yaml")
FIRST_RANK_SPEAKS_S = 10.0  # longer than the launcher takes to see a failed rank and end the others


class UserError(ValueError):
    """Something the user gave cannot work; the message says what to change.

    Subclasses may have arguments of their own: one that comes out of a worker process is put together from its
    message, not by calling its `__init__` again.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(of: type[UserError], arguments: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = of.__new__(of, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class ConfigError(UserError):
    """All the problems of one configuration file, found in one pass.

    Args:
        path: the file they were found in.
        problems: one sentence each.
    """

    def __init__(self, path: object, problems: Iterable[str]):
        self.problems = list(problems)
        assert self.problems, "a ConfigError needs at least one problem"
        if len(self.problems) == 1:
            message = f"{path}: {self.problems[0]}"
        else:
            message = f"{path} has {len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(message)


def read_all(*reads: Callable[[], Any]) -> list[Any]:
    """The results of all `reads`; if any raise `UserError`, one that holds all their messages."""
    results, messages = [], []
    for read in reads:
        try:
            results.append(read())
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("\n".join(messages))
    return results


def of_key(key: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` makes of a key's value; a refusal names the key."""
    try:
        return read(*arguments)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(f"{key} ") else f"{key}: {message}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name closest to `name`, nothing if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did_you_mean`, or the known names if none is close."""
    known = sorted(known)
    return did_you_mean(name, known) or (f"; known here: {', '.join(known)}" if known else "")


def what_to_do(error: BaseException) -> str | None:
    """The sentence for the user if `error` is one that they can act on, else None (a defect of ours).

    Besides `UserError` those are a disk that is full, a folder that may not be written, and a package that is not
    installed.
    """
    if isinstance(error, UserError):
        return str(error)
    known = (*EXTRAS_OF, *CORE)
    if isinstance(error, ModuleNotFoundError) and error.name in known and _importer(error) in (*OURS, "__main__"):
        return how_to_install(error.name)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"{error.filename or 'output'}: {os.strerror(error.errno)}; free or permit it and run again"
    return None


def how_to_install(package: str) -> str:
    """The sentence for a package that is not installed: the extra that brings it, or the Python that has those of every use."""
    if package in CORE:
        return (
            f"the Python package {package} is not installed for {sys.executable}; run `make install` once and "
            "`source launch/env.sh` in this shell, or pip install -e . into this Python"
        )
    *others, last = [f"pip install -e '.[{extra}]' for {EXTRAS[extra]}" for extra in EXTRAS_OF[package]]
    return f"the Python package {package} is not installed: {', or '.join([*others, last])}"


def explain_missing_packages() -> None:
    """Let this process end with one sentence and code 2 where a module cannot be imported for want of an extra.

    Scripts import their modules before `main` is there to be wrapped by `exit_on_user_error`.
    """
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        of_ours = isinstance(error, ModuleNotFoundError) and _importer(error) in OURS
        message = what_to_do(error) if of_ours and not hasattr(sys, "ps1") else None
        if message is None:
            report(kind, error, trace)
        else:
            _print_once_per_host(message)
            raise SystemExit(2)  # the interpreter takes it as the exit code

    sys.excepthook = hook


def _importer(error: BaseException) -> str:
    """The package whose import failed, or where another error was raised; a user's own module may lack what it likes."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__")).split(".")[0]


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a script's main: an error that the user can act on becomes one message and exit code 2, ctrl-C one and 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, OSError, ModuleNotFoundError) as error:
            if isinstance(error, BrokenPipeError) and _reader_has_gone():
                return READER_GONE
            message = what_to_do(error)
            if message is None:
                raise
            _print_once_per_host(message)
            return 2
        except KeyboardInterrupt as interrupt:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                advice = str(interrupt) or "run the same command to start it again"
                print(f"interrupted; {advice}", file=sys.stderr, flush=True)
            return INTERRUPTED

    return wrapped


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; what is still to be written goes nowhere then."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _print_once_per_host(message: str) -> None:
    """Under a launcher all ranks of a host meet the same error; its first rank speaks for them.

    The launcher ends all ranks as soon as one has failed, so the others wait for the first to speak; one that is
    still there afterwards has an error of its own.
    """
    rank, first = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        time.sleep(FIRST_RANK_SPEAKS_S)
    from recipe.base.ranks import host_name, located, machine_name  # which imports this module

    host = "" if rank == "0" else f" ({located(host_name(), machine_name())}{'' if first else f', rank {rank}'})"
    print(f"error{host}: {message}", file=sys.stderr, flush=True)
