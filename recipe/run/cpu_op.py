"""Build DeepSpeed's shared-memory collective for CPU ranks once, before any rank needs it.

DeepSpeed compiles it at the first CPU start. A process killed meanwhile leaves torch's `lock` file in the
extensions folder, and every later start waits for it without a word. So ranks build under a lock of ours
that the kernel frees when its holder dies: whoever holds it knows that torch's lock is a leftover.
"""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils.cpp_extension import _get_build_directory


def ensure_cpu_op() -> None:
    """Return when the op is built; does nothing where the accelerator is no CPU."""
    if torch.cuda.is_available() or get_accelerator().device_name() != "cpu":
        return
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    folder = Path(_get_build_directory(builder.NAME, verbose=False))
    with open(folder.parent / f"{builder.NAME}.recipe.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / f"{builder.NAME}.so").exists() and not (folder / "lock").exists():
            return
        if (folder / "lock").exists():
            print(f"removing {folder / 'lock'}, left by a build that was killed", file=sys.stderr)
            (folder / "lock").unlink()
        builder.load(verbose=False)


if __name__ == "__main__":
    ensure_cpu_op()
