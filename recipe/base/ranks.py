"""This process among those that a launcher started, read from its environment."""

from __future__ import annotations

import os
import sys

from recipe.base.errors import UserError


def is_first_rank() -> bool:
    """Whether this process speaks for all; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def launched_world_size() -> int | None:
    """Ranks that the launcher started; None without one."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def required_world_size() -> int:
    """Ranks that the launcher started.

    Raises:
        UserError: started without a launcher.
    """
    size = launched_world_size()
    if size is None:
        raise UserError(f"this needs the launcher: deepspeed [--hostfile H] {' '.join(sys.argv)}")
    return size
