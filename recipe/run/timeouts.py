"""How long a collective may take before torch ends the job by itself: longer than the watchdog, which names who holds it up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from recipe.base.errors import UserError
from recipe.base.settings import Watch

# That ranks may take to meet: DeepSpeed's default of a group's timeout, which a rendezvous has by itself (deepspeed/constants.py).
RENDEZVOUS_S = 600.0
MARGIN_S = 600.0  # a stuck collective can have been started some time before the last phase that the watchdog saw
BEATS = 5  # of the heartbeat, that the watchdog needs to notice, to compare the ranks and to say so (recipe.safety.watchdog)


@dataclass(frozen=True)
class Limit:
    """A variable of the environment that sets when a hung job is ended."""

    name: str
    unit_s: int


# DeepSpeed's default of every process group, minutes (deepspeed/constants.py).
GROUPS = Limit("DEEPSPEED_TIMEOUT", 60)
# After which NCCL's monitor aborts a process whose NCCL watchdog thread stands still, as it does in a hung driver (torch,
# ProcessGroupNCCL.hpp; 480 s if it is not set).
NCCL_MONITOR = Limit("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", 1)
# Of the start of a communicator, where that does not block (the same; off unless asked for).
NCCL_START = Limit("TORCH_NCCL_NONBLOCKING_TIMEOUT", 1)
# TORCH_NCCL_BLOCKING_WAIT and TORCH_NCCL_ASYNC_ERROR_HANDLING say how a process ends at its groups' timeout, not when.
LIMITS = (GROUPS, NCCL_MONITOR, NCCL_START)


def group_timeout_s(watch: Watch, environment: Mapping[str, str] | None = None) -> float:
    """Seconds after which a collective fails, for every process group.

    Args:
        environment: of the process, `os.environ` by default.

    Raises:
        UserError: the environment sets a shorter limit, or one that is not understood.
    """
    environment = os.environ if environment is None else environment
    key = "start_s" if watch.start_s >= watch.no_progress_s else "no_progress_s"
    patience_s = getattr(watch, key)
    least_s = patience_s + BEATS * watch.heartbeat_s
    given = {limit.name: _seconds(limit, environment[limit.name]) for limit in LIMITS if limit.name in environment}
    for limit in LIMITS:
        if given.get(limit.name, least_s) < least_s:
            raise UserError(
                f"{limit.name}={environment[limit.name]} ends a hung job before watch.{key} ({patience_s:g} s) lets the "
                f"watchdog name the rank that hangs; unset it, or set it to {-int(-least_s // limit.unit_s)} or more"
            )
    return given.get(GROUPS.name, least_s + MARGIN_S)


def rendezvous_timeout_s(environment: Mapping[str, str] | None = None) -> float:
    """Seconds that ranks wait for those that have yet to start: one that refuses to must not hold the others as a hang may.

    Args:
        environment: of the process, `os.environ` by default; DEEPSPEED_TIMEOUT there is for this, too.

    Raises:
        UserError: that is not understood.
    """
    environment = os.environ if environment is None else environment
    return _seconds(GROUPS, environment[GROUPS.name]) if GROUPS.name in environment else RENDEZVOUS_S


def _seconds(limit: Limit, text: str) -> float:
    try:
        return int(text) * limit.unit_s
    except ValueError:
        unit = "minutes" if limit.unit_s == 60 else "seconds"
        raise UserError(f"{limit.name}={text} is not a whole number of {unit}; correct or unset it") from None
