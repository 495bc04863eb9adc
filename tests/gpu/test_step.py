"""What is around a step: waits of the host, the phases' clock, timed collectives, and fingerprints."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from recipe.base.settings import Compute
from recipe.checkpoints.fingerprints import engine_fingerprints, fingerprint, folder_fingerprints, one_by_one
from recipe.safety.stragglers import compare, timed_collectives
from recipe.telemetry.phases import PhaseClock
from tests.conftest import ROOT
from tests.gpu.engines import SEED, Case, Training, initial_weights, plain, trained
from tests.gpu.test_engine import LATER_LOSSES

pytestmark = pytest.mark.usefixtures("process_group")

WARM_UP = 2  # steps in which ZeRO-3 records what it gathers


OWNERS = {str(ROOT / "recipe"): "recipe", str(Path(deepspeed.__file__).parent): "deepspeed"}


def asker() -> str:
    """The innermost line of this project or of DeepSpeed that runs now."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        for folder, owner in OWNERS.items():
            if frame.f_code.co_filename.startswith(folder + os.sep):
                return f"{owner}{frame.f_code.co_filename.removeprefix(folder)}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Operations for which the host waits, by the line that asked for them.

    CUDA's debug mode warns of those that bring a value; of a wait for a stream, an event or the device it says nothing.
    """
    found: Counter[str] = Counter()

    def noting(wait: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[asker()] += 1
            return wait(*args, **kwargs)

        return call

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[asker()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        waits = [(of, of.synchronize) for of in (torch.cuda, torch.cuda.Stream, torch.cuda.Event)]
        for of, wait in waits:
            of.synchronize = noting(wait)
        try:
            yield found
        finally:
            for of, wait in waits:
                of.synchronize = wait
            torch.cuda.set_sync_debug_mode("default")


# Of the recipe's files one may wait: rerouting asks how many are left, by its nature (tests/recipe/engine/test_waits.py).
@pytest.mark.parametrize(
    ("stage", "limit", "recompute", "may_wait"),
    [
        (1, "drop", "none", set()),
        (3, "dropless", "non_reentrant", set()),
        (3, "reroute", "none", {"recipe/model/routing/capacity.py"}),
    ],
)
def test_waits(stage, limit, recompute, may_wait, device, measured):
    """In a step after the warm-up no line of the recipe waits for the GPU, but those that must."""
    if device.type == "cpu":
        pytest.skip("not possible here: a CPU has no device to wait for")  # the engine's test_waits.py: operators
    with trained(Case(stage, limit, bf16=True, compute=Compute(recompute=recompute))) as training:
        training.steps(1, WARM_UP)
        torch.cuda.synchronize()
        with counted_waits() as found:
            total = training.step(WARM_UP + 1)
        with counted_waits() as planted:
            total.item()
            torch.cuda.current_stream().synchronize()
    assert sum(planted.values()) >= 2, "a wait that was planted is not seen"
    of_recipe = {line.rsplit(":")[0] for line in found if line.startswith("recipe/")}
    measured.update(
        waits_of_deepspeed=sum(n for line, n in found.items() if line.startswith("deepspeed/")),
        waits_of_torch=found["torch"],
        lines=dict(found.most_common(8)),
    )
    assert of_recipe <= may_wait


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprints(dtype, device, measured):
    """Fingerprints that a GPU computes are those that a CPU computes of the same bytes."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((1 << 16) * 130 + 77, generator=generator).to(dtype)  # more blocks than a GPU takes at once
    first = (1 << 16) * 3 + 5
    for part, place in ((values, 0), (values, first), (values[:1000], first), (values[3:70_000], (1 << 16) - 2)):
        assert fingerprint(part.to(device), place) == fingerprint(part, place)
    if dtype == torch.float32:
        assert fingerprint(values.to(device), dtype=torch.bfloat16) == fingerprint(values.bfloat16())
    changed = values.clone()
    changed[12_345] += 1
    assert fingerprint(changed.to(device)) != fingerprint(values)
    measured["elements"] = values.numel()


@pytest.fixture(scope="module")
def warm(process_group) -> Iterator[tuple[Training, dict[str, Any]]]:
    """An engine in fp32 after its warm-up, for the checks below, and its fingerprints before."""
    with trained(Case(3)) as training:
        prints = engine_fingerprints(training.engine)
        training.steps(1, WARM_UP)
        yield training, prints


def test_engine_has_its_weights(warm, measured):
    """An engine's fingerprints on the GPU are those that a CPU computes of the weights that it was given."""
    _, prints = warm
    expected = folder_fingerprints(one_by_one(initial_weights(SEED).__getitem__), prints)
    assert {name for name in prints if prints[name] != expected[name]} == set()
    measured["tensors"] = len(prints)


def test_timed_collectives(warm, measured):
    """A step with timed collectives waits for them no longer than it lasts, and has the loss of the plain model."""
    training, _ = warm
    number = len(training.losses) + 1
    with timed_collectives() as step_time:
        training.steps(number, number)
    losses, _ = plain("dropless", documents=False, bf16_weights=False, steps=number)
    metrics, message = compare(step_time, ratio=2.0)
    measured.update(whole_s=round(step_time.whole_s, 4), waited_s=round(step_time.waited_s, 4))
    assert training.losses == pytest.approx(losses, rel=LATER_LOSSES)
    assert 0 < step_time.waited_s < step_time.whole_s
    assert step_time.sent_bytes["reduce_scatter"] > 0  # a rank alone gathers nothing
    assert step_time.memory_gib > 0
    assert (metrics["slowest_rank"], message) == (0, None)


def test_phases(warm, device, measured):
    """The phases of steps add up to the time that passes."""
    training, _ = warm
    first = len(training.losses) + 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun_s = time.perf_counter()
    clock = PhaseClock()
    of_steps_s = time.perf_counter()
    for number in (first, first + 1):
        clock.enter("reading")
        training.steps(number, number, enter=clock.enter)
        clock.enter("between steps")
    of_steps_s = time.perf_counter() - of_steps_s
    phases = clock.take(1)
    passed_s = time.perf_counter() - begun_s
    measured.update(passed_s=round(passed_s, 4), **{name: round(seconds, 4) for name, seconds in phases.items()})
    assert {"data_wait", "forward", "backward", "optimizer"} <= phases.keys()
    assert all(seconds > 0 for name, seconds in phases.items() if name in ("forward", "backward", "optimizer"))
    # A GPU's clock and the host's begin and end some launches apart.
    apart_s = 0.01 if device.type == "cuda" else 1e-6
    assert of_steps_s - apart_s <= sum(phases.values()) <= passed_s + apart_s
