"""Faults put into a run by the environment variable RECIPE_FAULTS, for the fault suite and for drills on a cluster.

A JSON list of faults, each `{"kind": ..., "attempt": 1, "rank": 0, "step": 5, ...}`; it happens in that attempt
alone. `install` is called once, when the variable is set, and puts wrappers where they belong; without it no line of
training knows of faults.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.checkpoints import store as checkpoint
from recipe.safety import corruption
from recipe.safety.watchdog import Progress
from recipe.training import loop
from recipe.training.start import FAULTS


def install(engine: deepspeed.DeepSpeedEngine, progress: Progress, attempt: int) -> None:
    """Put the faults of this attempt and rank in place.

    Raises:
        UserError: an unknown kind.
    """
    for fault in json.loads(os.environ[FAULTS]):
        if fault["kind"] not in _KINDS:
            raise UserError(f"{FAULTS} has an unknown kind '{fault['kind']}'; known: {', '.join(sorted(_KINDS))}")
        of_this_rank = fault.get("rank") in (None, dist.get_rank())
        if of_this_rank and fault.get("attempt", 1) == attempt:
            _KINDS[fault["kind"]](fault, engine, progress)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _due(fault: dict[str, Any], progress: Progress) -> bool:
    """Whether a step is one of the fault's: `step`, and `steps` of them."""
    return fault["step"] <= progress.step < fault["step"] + fault.get("steps", 1)


def _in_forward(action: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    def put(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
        def hook(*_: Any) -> None:
            if _due(fault, progress):
                action(fault)

        engine.module.model.layers[1].register_forward_pre_hook(hook)

    return put


def _kill_in_backward(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    def hook(*_: Any) -> None:
        if _due(fault, progress):
            _die()

    engine.module.model.layers[1].register_full_backward_pre_hook(hook)


def _kill_in_collective(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    """The others are in the all-to-all already, or will be."""
    original = deepspeed.comm.all_to_all_single

    def call(*args: Any, **kwargs: Any) -> Any:
        if _due(fault, progress):
            time.sleep(0.2)
            _die()
        return original(*args, **kwargs)

    deepspeed.comm.all_to_all_single = call


def _kill_in_save(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    """At a point of the commit protocol, in the first save from `step` on."""

    def reached(point: str) -> None:
        if point == fault["point"] and progress.step >= fault["step"]:
            _die()

    checkpoint.reached = reached


def _fill_disk(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    """Between the look at the free space and the writing, once."""
    filler = Path(fault["file"])

    def reached(point: str) -> None:
        if point == "copied" and not filler.exists():
            with open(filler, "wb") as handle, suppress(OSError):
                while True:
                    handle.write(bytes(1 << 20))

    checkpoint.reached = reached


def _nan_gradient(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if _due(fault, progress) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    engine.module.model.layers[1].register_forward_hook(hook)


def _bad_data(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    """Logits many times too large, and with them loss and gradient, while the data's position is in [first, last)."""
    original, bad = loop.Prefetcher.take, [False]

    def take(self: Any, position: int, following: int) -> Any:
        bad[0] = fault["first"] <= position < fault["last"]
        return original(self, position, following)

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output * 50 if bad[0] else None

    loop.Prefetcher.take = take  # type: ignore[method-assign]
    engine.module.model.norm.register_forward_hook(hook)


def _collapse(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    """Every router prefers the same experts by far, once."""
    done: list[int] = []

    def hook(*_: Any) -> None:
        if _due(fault, progress) and not done:
            done.append(progress.step)
            for layer in engine.module.model.layers[engine.module.config.first_k_dense_replace :]:
                layer.mlp.router.e_score_correction_bias[: layer.mlp.top_k] += fault["bias"]

    engine.module.model.layers[0].register_forward_pre_hook(hook)


def _clock(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    original = time.time
    time.time = lambda: original() + (fault["seconds"] if progress.step >= fault["step"] else 0.0)


def _corrupt_arithmetic(fault: dict[str, Any], engine: deepspeed.DeepSpeedEngine, progress: Progress) -> None:
    original = corruption.digest_of_results
    corruption.digest_of_results = lambda *args: original(*args)[::-1] if _due(fault, progress) else original(*args)


def _out_of_memory(fault: dict[str, Any]) -> None:
    raise torch.OutOfMemoryError("tried to allocate more than there is (fault)")


_KINDS: dict[str, Callable[..., None]] = {
    "kill_in_forward": _in_forward(lambda fault: _die()),
    "kill_in_backward": _kill_in_backward,
    "kill_in_collective": _kill_in_collective,
    "kill_in_save": _kill_in_save,
    "stop_process": _in_forward(lambda fault: os.kill(os.getpid(), signal.SIGSTOP)),
    "sleep": _in_forward(lambda fault: time.sleep(fault["seconds"])),
    "out_of_memory": _in_forward(_out_of_memory),
    "fill_disk": _fill_disk,
    "nan_gradient": _nan_gradient,
    "bad_data": _bad_data,
    "collapse": _collapse,
    "clock": _clock,
    "corrupt_arithmetic": _corrupt_arithmetic,
}
