"""What ranks tell each other outside the steps, the timeouts of their groups, and what preflight measures of a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from launch import preflight_ranks
from recipe.base.errors import UserError
from recipe.base.hardware import accelerator_of
from recipe.base.settings import Watch
from recipe.engine.collectives import all_ranks, any_rank, from_first_rank, gathered
from recipe.run.timeouts import NCCL_MONITOR, group_timeout_s
from tests.gpu.engines import Case, trained

pytestmark = pytest.mark.usefixtures("process_group")


def test_collectives(device, measured):
    """Votes, values and errors of rank 0 pass through a group of one rank."""
    assert [any_rank(True), any_rank(False), all_ranks(True), all_ranks(False)] == [True, False, True, False]
    value = {"list": [1, "two", None], "array": torch.arange(3)}
    assert from_first_rank(lambda: value)["list"] == value["list"]
    assert gathered(("a", 1)) == [("a", 1)]

    def refuse() -> None:
        raise UserError("the folder is not empty; choose another one")

    with pytest.raises(UserError, match="choose another one"):
        from_first_rank(refuse)
    with pytest.raises(ZeroDivisionError):
        from_first_rank(lambda: 1 // 0)
    measured["backend"] = dist.get_backend()
    assert dist.get_backend() == ("nccl" if device.type == "cuda" else "gloo")


def test_groups_outlast_the_watchdog(device, measured):
    """All process groups of an engine, and NCCL's monitor, wait longer than the watchdog of the run."""
    watch = Watch()
    with trained(Case(3)) as training:
        training.steps(1, 1)
        backends = [group._get_backend(device) for group in distributed_c10d._world.pg_map]
        timeouts_s = [backend.options._timeout.total_seconds() for backend in backends]
    measured.update(groups=len(timeouts_s), timeout_s=min(timeouts_s))
    assert len(timeouts_s) > 1
    assert min(timeouts_s) == group_timeout_s(watch) > max(watch.start_s, watch.no_progress_s)
    assert int(os.environ[NCCL_MONITOR.name]) > max(watch.start_s, watch.no_progress_s)


def test_preflight(device, measured, monkeypatch):
    """Preflight's measurement of one rank gives a plausible rate of matmuls and the GPU's name."""
    # In the group that there is.
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda *_: None)
    found: dict[str, Any] = preflight_ranks.measure(seconds=0.5 if device.type == "cpu" else 1.0, mib=8)
    speeds = preflight_ranks.bandwidths(dist.group.WORLD, device, mib=64)  # which a single rank is not asked for
    measured.update(tflops=round(found["tflops"][0], 3), device=found["device"], **speeds)
    assert len(found["tflops"]) == 1
    assert (found["inside"], found["between"]) == ({}, {})
    assert all(speed > 0 for speed in speeds.values())
    if device.type == "cpu":
        assert found["device"] == "cpu"
        assert 0 < found["tflops"][0] < 50
        return
    assert found["device"] == torch.cuda.get_device_name()
    known = accelerator_of(found["device"])
    assert found["tflops"][0] > 10  # the least of GPUs of 80 GB has 312
    if known is not None:
        share = found["tflops"][0] * 1e12 / known.bf16_flops
        measured["share_of_peak"] = round(share, 3)
        assert 0.3 < share <= 1.05
