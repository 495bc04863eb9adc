"""Locks name their holder, and a file system without locks is told from a lock that is taken."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from recipe.base.errors import UserError
from recipe.run.folder import lock_run_folder
from recipe.run.locks import in_turn, lock_file, lock_holder

HOLD = "import sys, pathlib; from recipe.run.locks import lock_file; \
h = lock_file(pathlib.Path(sys.argv[1]), subject='x', note='a note'); print('held', flush=True); sys.stdin.read()"


def test_a_lock_that_is_taken_names_its_holder_and_is_free_when_the_holder_is_killed(tmp_path):
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    assert not path.exists()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert re.fullmatch(rf"process {holder.pid} on \S+ \(a note\)", lock_holder(path) or "")
    with pytest.raises(UserError, match=rf"RUN is in use by process {holder.pid} on .*end that run first"):
        lock_file(path, subject="RUN")
    holder.kill()
    holder.communicate()
    assert lock_holder(path) is None
    lock_file(path, subject="RUN", patience_s=5.0).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_not_said_to_be_in_use(number, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(os, "lockf", refuse)
    (tmp_path / "lock").write_text("process 7 on a\n")
    message = rf"lock cannot be locked \({re.escape(os.strerror(number))}\).*mount this file system with locks"
    for take in (
        lambda: lock_run_folder(tmp_path),
        lambda: lock_holder(tmp_path / "lock"),
        lambda: in_turn(tmp_path / "op.lock").__enter__(),
    ):
        with pytest.raises(UserError, match=message) as refused:
            take()
        assert "in use" not in str(refused.value)


def test_a_turn_tells_whether_the_last_one_came_to_its_end(tmp_path):
    path = tmp_path / "lock"
    for fails, expected in ((False, False), (True, False), (False, True), (False, False)):
        with suppress(ZeroDivisionError), in_turn(path) as holder_died:
            assert holder_died == expected
            assert lock_holder_of_another_process(path).startswith(f"process {os.getpid()} on ")
            assert not fails or 1 / 0


def lock_holder_of_another_process(path) -> str:
    ask = "import sys, pathlib; from recipe.run.locks import lock_holder; print(lock_holder(pathlib.Path(sys.argv[1])))"
    return subprocess.run([sys.executable, "-c", ask, path], capture_output=True, text=True, check=True).stdout
