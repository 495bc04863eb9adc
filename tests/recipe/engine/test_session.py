"""The process groups of a session."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from datetime import timedelta

import deepspeed
import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_timeout

from launch.cluster.hosts import free_port
from recipe.base.errors import UserError
from recipe.base.settings import Watch
from recipe.engine import session as module
from recipe.engine.session import WithoutBuildNote, session
from recipe.run import timeouts

DEFAULTS = ("gloo", "nccl")


@pytest.fixture
def made(monkeypatch) -> list[timedelta]:
    """Timeouts of the process groups that a session would make."""
    timeouts: list[timedelta] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what a session sets there stays
    os.environ.pop("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", None)
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(free_port())),
    ):
        os.environ[name] = value
    monkeypatch.setattr(module, "ensure_cpu_op", lambda: None)
    monkeypatch.setattr(module, "remove_shared_memory", lambda: None)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda dist_backend, timeout: timeouts.append(timeout))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return timeouts


def test_every_group_of_a_session_and_nccls_monitor_wait_longer_than_the_watchdog(made):
    watch, before = Watch(start_s=10, no_progress_s=9000), _get_default_timeout("gloo")
    with session(watch):
        waits = [*made, *(_get_default_timeout(backend) for backend in DEFAULTS)]
        assert len(waits) == 3
        assert min(waits) > timedelta(seconds=watch.no_progress_s)
        assert int(os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) > watch.no_progress_s
    assert _get_default_timeout("gloo") == before
    with session(Watch(start_s=90_000)):
        assert int(os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) > 90_000


def test_ranks_do_not_wait_for_one_that_never_starts_as_long_as_for_one_that_hangs(made, monkeypatch):
    monkeypatch.setattr(timeouts, "RENDEZVOUS_S", 1.0)
    os.environ["WORLD_SIZE"] = "2"
    with pytest.raises(dist.DistStoreError, match="1/2 clients joined"), session(Watch(start_s=9000)):
        pass
    assert made == []


def test_a_process_group_follows_on_the_store_at_which_ranks_met(made, monkeypatch):
    destroy = dist.distributed_c10d.destroy_process_group

    def initialize(dist_backend: str, timeout: timedelta) -> None:
        dist.init_process_group(dist_backend, timeout=timeout)
        made.append(timeout)

    monkeypatch.setattr(deepspeed, "init_distributed", initialize)
    with session():
        assert dist.get_world_size() == 1
    destroy()
    assert len(made) == 1


def test_what_the_environment_says_of_groups_is_for_the_rendezvous_too():
    assert timeouts.rendezvous_timeout_s({}) == 600
    assert timeouts.rendezvous_timeout_s({"DEEPSPEED_TIMEOUT": "90"}) == 5400


def test_a_shorter_timeout_is_refused_before_there_is_a_process_group(made):
    os.environ["DEEPSPEED_TIMEOUT"] = "30"
    with pytest.raises(UserError, match="DEEPSPEED_TIMEOUT=30"), session():
        pass
    assert made == []


def test_the_one_line_that_deepspeed_prints_for_an_op_that_is_there_is_left_out_and_no_other():
    shown = io.StringIO()
    with redirect_stdout(WithoutBuildNote(shown)):
        print("before")
        print("DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully")
        print()
        print("DeepSpeed is built successfully but the op failed")
    assert shown.getvalue() == "before\n\nDeepSpeed is built successfully but the op failed\n"
