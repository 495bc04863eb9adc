"""Load DeepSpeed's shared-memory collective for CPU ranks, built once, under a lock that cannot be left behind.

DeepSpeed compiles it at the first CPU start, about half a minute, under torch's `lock` file in the extensions
folder. A process killed meanwhile leaves that file, and every later start waits for it without a word. Here
ranks load the op under a lock of ours that the kernel frees when its holder dies, before DeepSpeed asks for
it (which then finds it loaded). A holder that died while loading leaves its mark, and torch's file with it
is removed at once; one of unknown origin is waited for, aloud.

It is always built by this environment's ninja: another version, such as the system's on the PATH that ssh gives, does not
read its log and compiles all of it again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.ranks import host_name, located, machine_name
from recipe.engine.deepspeed_private import cpu_op_builder, extension_folder
from recipe.run.locks import in_turn

LOAD_S = 5.0  # longer than it takes to load, shorter than to compile
FOREIGN_BUILD_S = 180.0  # longer than the op takes to build anywhere


def ensure_cpu_op() -> None:
    """Load the op into this process; does nothing where the accelerator is no CPU."""
    if (builder := cpu_op_builder()) is None:
        return
    folder = extension_folder(builder.NAME)
    with in_turn(folder.parent / f"{builder.NAME}.recipe.lock") as holder_died:
        clear_leftover(folder / "lock", holder_died=holder_died, patience_s=FOREIGN_BUILD_S)
        use_own_ninja()
        with saying_that_it_compiles(folder / f"{builder.NAME}.so"):
            builder.load(verbose=False)


def use_own_ninja() -> None:
    """Have torch find the ninja of this environment, whatever PATH says.

    Raises:
        UserError: there is none, here or on PATH.
    """
    folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join((folder, path))
    if shutil.which("ninja") is None:
        raise UserError(
            f"there is no ninja on {located(host_name(), machine_name())}, which CPU ranks need; pip install ninja into {folder}"
        )


@contextmanager
def saying_that_it_compiles(library: Path) -> Iterator[None]:
    """Around the loading of an op: say so if it is compiled first, at once or when it takes as long.

    Raises:
        UserError: it must be compiled and there is no compiler.
    """
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["c++"])[0]  # as torch does
    if not library.exists() and shutil.which(compiler) is None:
        raise UserError(
            f"there is no compiler ({compiler}) on {located(host_name(), machine_name())}, which CPU ranks need once for {library}; install g++, "
            "or start on a host that has one and shares this folder"
        )
    message = (
        f"compiling DeepSpeed's collective for CPU ranks into {library.parent}, once; about 30 s on an idle machine"
    )
    timer = threading.Timer(LOAD_S if library.exists() else 0.0, print, (message,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def clear_leftover(lock: Path, *, holder_died: bool, patience_s: float) -> None:
    """Remove torch's lock file if its owner is gone; wait for one that somebody else may hold."""
    deadline = time.monotonic() + patience_s
    if lock.exists() and not holder_died:
        print(
            f"waiting for {lock}, another process compiles it; if no other process runs, delete this file",
            file=sys.stderr,
            flush=True,
        )
        while lock.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    if lock.exists():
        print(f"removing {lock}, left by a process that was killed", file=sys.stderr, flush=True)
        lock.unlink()


if __name__ == "__main__":
    ensure_cpu_op()
