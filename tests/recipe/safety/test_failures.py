"""What ranks' errors say of their cause: messages as PyTorch, NCCL, gloo and CUDA write them."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launch.cluster.incidents import incident_of
from recipe.base.errors import ConfigError, UserError
from recipe.base.ranks import RESTART
from recipe.engine import collectives
from recipe.engine.collectives import FirstRankFailed, from_first_rank
from recipe.run.folder import RunFolder
from recipe.run.heartbeats import Heartbeat, write_heartbeat
from recipe.run.records import read_failures
from recipe.safety import failures
from recipe.safety.failures import kind_of, recorded_failures
from recipe.safety.watchdog import Progress

JOB: Any = SimpleNamespace(at=lambda number: None)  # is looked at when memory runs out alone
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "
ASYNC = "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
WATCHDOG = (
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, NumelIn=131072000, "
    "NumelOut=131072000, Timeout(ms)=600000) ran for 600081 milliseconds before timing out."
)
MESSAGES = {
    "peer_lost": [
        # gloo/transport/tcp
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:31822",
        "[../gloo/transport/tcp/pair.cc:525] Read error [10.0.0.1]:31822: Connection reset by peer",
        "[../gloo/transport/tcp/pair.cc:446] writev [10.0.0.1]:31822: Broken pipe",
        "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
        "[../gloo/transport/tcp/pair.cc:589] Application timeout caused pair closure",
        "Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc:144] no error",
        # c10d's store
        "[c10d] sendBytes failed on SocketImpl(fd=3, addr=[a]:5, remote=[b]:29500): Broken pipe",
        "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
        "The client socket has timed out after 300000ms while trying to connect to (10.0.0.1, 29500).",
        "The client socket has failed to connect to any network address of (10.0.0.1, 29500).",
        "[3] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', "
        "but store->get('0') got error: Connection reset by peer",
        "wait timeout after 300000ms, keys: /default_pg/0//worker_count",
        # NCCL
        NCCL + "remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call failed "
        "possibly due to a network error or a remote process exiting prematurely.\nLast error:\n"
        "socketProgressOpt: Call to recv from 10.0.0.1<33759> failed : Connection reset by peer",
        NCCL + "remote process exited or there was a network error, NCCL version 2.14.3\nncclRemoteError: A call failed "
        "possibly due to a network error or a remote process exiting prematurely.\nLast error:\n"
        "NET/IB : Got completion from peer 10.0.0.1<39138> with error 12, opcode 0, len 0, vendor err 129",
        NCCL + "internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\nLast error:\n"
        "Net : Connection closed by remote peer node3<50260>",
        NCCL + "unhandled system error, NCCL version 2.19.3\nncclSystemError: System call (e.g. socket, malloc) or external "
        "library call failed or device error. \nLast error:\nsocketStartConnect: Connect to 10.0.0.1<44055> failed : "
        "Software caused connection abort",
        "NCCL communicator was aborted on rank 1.",
    ],
    "hang": [
        WATCHDOG,
        "NCCL communicator was aborted on rank 1.  Original reason for failure was: " + WATCHDOG,
        "Rank 1 failed to pass monitoredBarrier in 30000 ms",
    ],
    "error": [
        "CUDA error: uncorrectable ECC error encountered" + ASYNC,
        "CUDA error: an illegal memory access was encountered" + ASYNC,
        "CUDA error: device-side assert triggered" + ASYNC,
        "CUDA error: unspecified launch failure" + ASYNC,
        "CUDA error: peer access is already enabled",
        "CUDA error: peer access is not supported between these two devices",
        "CUDA driver error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.20.5\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 999 'unknown error'",
        "NCCL error: unhandled cuda error",
        "NCCL communicator was aborted on rank 3. Original reason for failure was: NCCL error: unhandled cuda error, "
        "Last error: Cuda failure 'uncorrectable ECC error encountered'",
        "[Rank 0] Process group watchdog thread terminated with exception: CUDA error: an illegal memory access was encountered",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus; Connection closed",
        NCCL + "invalid usage, NCCL version 2.17.1\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
        NCCL + "unhandled system error, NCCL version 2.19.3\nncclSystemError: System call (e.g. socket, malloc) or external "
        "library call failed or device error. \nLast error:\nError while creating shared memory segment /dev/shm/nccl-x",
        "the peer review of this tensor failed",
        "shape mismatch",
    ],
    "out_of_memory": [
        "CUDA error: out of memory" + ASYNC,
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        NCCL + "unhandled cuda error, NCCL version 2.20.5\nLast error:\nCuda failure 2 'out of memory'",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), [(kind, m) for kind, messages in MESSAGES.items() for m in messages])
def test_messages_are_told_apart(kind, message):
    error = getattr(dist, "DistBackendError", RuntimeError)(message)
    assert kind_of(error) == kind_of(RuntimeError(message)) == kind


def test_errors_of_other_types():
    assert kind_of(torch.OutOfMemoryError("x")) == "out_of_memory"
    assert kind_of(UserError("Connection closed")) == kind_of(OSError(errno.ENOSPC, "x")) == "user_error"
    assert kind_of(KeyError("Connection reset")) == "error"
    assert kind_of(FirstRankFailed("rank 0 failed: CUDA error")) == "peer_lost"


@pytest.fixture
def folder(tmp_path):
    """A run of four ranks on two hosts."""
    folder = RunFolder(tmp_path, 1)
    folder.heartbeats.mkdir()
    for rank in range(4):
        write_heartbeat(folder.heartbeats, Heartbeat(rank, f"host{rank // 2}", 1, 1, 7, "forward", 40, 3))
    return folder


def fail(folder: RunFolder, rank: int, message: str, monkeypatch) -> None:
    """A rank ends with an error of torch, as in training."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("socket.gethostname", lambda: f"host{rank // 2}")
    with pytest.raises((RuntimeError, SystemExit)), recorded_failures(folder, JOB):
        raise RuntimeError(message)


def test_an_own_error_is_blamed_and_its_consequences_are_not(folder, monkeypatch):
    lost, ecc = MESSAGES["peer_lost"][0], MESSAGES["error"][0]
    for rank, message in ((0, lost), (1, WATCHDOG), (2, ecc), (3, "CUDA error: unspecified launch failure")):
        fail(folder, rank, message, monkeypatch)
    found = incident_of(folder.path, 1, 1)
    assert (found.kind, found.rank, found.host) == ("error", 2, "host1")
    assert found.message == "RuntimeError: CUDA error: uncorrectable ECC error encountered"


@pytest.mark.parametrize("message", [WATCHDOG, MESSAGES["error"][1], MESSAGES["peer_lost"][0], "loss of rank 7"])
def test_ranks_that_end_alike_are_not_told_apart(message, folder, monkeypatch):
    for rank in (0, 1, 2, 3):
        fail(folder, rank, message.replace("1", str(rank)), monkeypatch)
    found = incident_of(folder.path, 1, 250)
    assert (found.kind, found.rank, found.host) == (kind_of(RuntimeError(message)), None, None)


@pytest.mark.parametrize(("code", "name"), [(250, "SIGABRT"), (134, "SIGABRT"), (247, "SIGKILL")])
def test_ranks_that_are_aborted_alike_without_a_word_neither(code, name, folder):
    found = incident_of(folder.path, 1, code)
    assert (found.kind, found.rank, found.host) == ("killed", None, None)
    assert f"all 4 ranks killed by {name}, alike" in found.message


def test_the_silent_rank_is_what_the_others_waited_for(folder, monkeypatch):
    for rank in (0, 1, 2):
        fail(folder, rank, WATCHDOG, monkeypatch)
    found = incident_of(folder.path, 1, 75)
    assert (found.kind, found.rank, found.host) == ("hang", 3, "host1")


def test_silent_ranks_of_several_hosts_are_named_and_none_is_blamed(folder, monkeypatch):
    fail(folder, 0, MESSAGES["peer_lost"][0], monkeypatch)
    found = incident_of(folder.path, 1, 247)
    assert (found.kind, found.rank) == ("killed", None)
    assert "rank 1 on host0, rank 2 on host1, rank 3 on host1" in found.message


def test_the_earliest_cause_comes_first_whatever_its_kind(folder):
    folder.record_failure("error", "CUDA error: x", rank=2, host="host1")
    folder.record_failure("hang", "no progress", rank=1, host="host0")
    path = next((folder.path / "failures").glob("*_rank_00001.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": 9e9}))
    assert incident_of(folder.path, 1, 75).rank == 2


def test_a_hang_whose_culprits_are_on_several_hosts_blames_none(folder):
    for rank in (1, 3):
        folder.record_failure("hang", "no progress", rank=rank, host=f"host{rank // 2}")
    found = incident_of(folder.path, 1, 75)
    assert (found.kind, found.rank) == ("hang", None)


def test_a_failure_that_cannot_be_recorded_is_still_raised(folder, monkeypatch, capsys):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "record_failure", refuse)
    fail(folder, 1, "shape mismatch", monkeypatch)
    assert "rank 1 cannot leave word of its failure" in capsys.readouterr().err


def test_running_out_of_memory_is_recorded_before_a_report_is_made_which_may_fail(folder, monkeypatch, capsys):
    reports = iter(["a way out", None])
    monkeypatch.setattr(failures, "memory_report", lambda job: next(reports) or {}["no memory for it"])
    for rank, raised in ((1, torch.OutOfMemoryError), (2, KeyError)):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(raised), recorded_failures(folder, JOB):
            raise torch.OutOfMemoryError("tried to allocate")
    assert "out of memory: OutOfMemoryError: tried to allocate\na way out\n" in capsys.readouterr().err
    records = [json.loads(path.read_text()) for path in sorted((folder.path / "failures").iterdir())]
    assert [(record["rank"], record["kind"]) for record in records] == [(1, "out_of_memory"), (2, "out_of_memory")]


# As c10/cuda/CUDACachingAllocator.cpp of torch 2.13 has it, on one line.
SHORT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.14 GiB of which 512.00 MiB is free. "
    "Process 7 has 78.60 GiB memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch, and 4.00 GiB is "
    "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting ..."
)


@pytest.mark.parametrize(
    ("error", "gpu", "missing"),
    [
        (torch.OutOfMemoryError(SHORT), True, 2.0),
        (torch.OutOfMemoryError(SHORT.replace("512.00 MiB", "3.00 GiB")), True, 0.0),  # in pieces
        (torch.OutOfMemoryError(SHORT.replace("2.50 GiB", "512 bytes").replace("512.00 MiB", "0 bytes")), True, 2**-21),
        (torch.OutOfMemoryError("x"), True, 0.0),
        (RuntimeError(MESSAGES["out_of_memory"][0]), True, 0.0),
        (RuntimeError(MESSAGES["out_of_memory"][2]), True, 0.0),
        (RuntimeError(MESSAGES["out_of_memory"][1]), True, None),  # of the host
        (MemoryError(), True, None),
        (RuntimeError(MESSAGES["out_of_memory"][1]), False, 0.0),  # where tensors are
        (KeyError("x"), True, "no field"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_a_step_lacked_is_recorded(error, gpu, missing, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(failures, "memory_report", lambda job: "a way out")
    with pytest.raises(type(error)), recorded_failures(folder, JOB, Progress(7, "backward")):
        raise error
    (record,) = read_failures(folder.path, 1)
    assert record.get("missing_gib", "no field") == missing


@pytest.mark.parametrize(
    ("step", "phase", "missing"),
    [
        (0, "building the engine", None), (0, "loading the checkpoint", None), (7, "evaluating", None), (7, "saving", None),
        (1, "forward", 2.0), (7, "backward", 2.0), (7, "update", 2.0), (7, "finishing", 2.0),
    ],
)  # fmt: skip
def test_only_a_step_lacks_what_kept_results_take(step, phase, missing, folder, monkeypatch):
    monkeypatch.setattr(failures, "memory_report", lambda job: "a way out")
    with pytest.raises(torch.OutOfMemoryError), recorded_failures(folder, JOB, Progress(step, phase)):
        raise torch.OutOfMemoryError(SHORT)
    assert read_failures(folder.path, 1)[0]["missing_gib"] == missing


@pytest.mark.parametrize("message", [WATCHDOG, MESSAGES["peer_lost"][0]])
@pytest.mark.parametrize("broken", ["files", "standard error"])
def test_a_witness_leaves_with_75_whatever_it_cannot_write(broken, message, folder, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "files":
        monkeypatch.setattr(failures, "write_text", refuse)
        monkeypatch.setattr(RunFolder, "record_failure", refuse)
    else:
        monkeypatch.setattr(failures.sys, "stderr", SimpleNamespace(write=refuse, flush=refuse))
    with pytest.raises(SystemExit) as raised, recorded_failures(folder, JOB):
        raise RuntimeError(message)
    assert raised.value.code == RESTART


@pytest.mark.parametrize(
    ("error", "first", "others"),
    [
        (UserError("take the ferry"), UserError, UserError),
        (ConfigError("a.yaml", ["x is wrong"]), UserError, UserError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run"), UserError, UserError),
        (OSError(errno.EIO, "Input/output error"), OSError, FirstRankFailed),
        (KeyError("step"), KeyError, FirstRankFailed),
    ],
)
def test_every_error_of_the_first_rank_reaches_the_others(error, first, others, monkeypatch):
    sent: list[list] = []

    def make() -> None:
        raise error

    def broadcast(box: list) -> None:
        if sent:
            box[:] = sent[0]
        else:
            sent.append(list(box))

    monkeypatch.setattr(collectives.dist, "broadcast_object_list", broadcast)
    messages = []
    for rank, expected in ((0, first), (1, others)):
        monkeypatch.setattr(collectives.dist, "get_rank", lambda rank=rank: rank)
        with pytest.raises(expected) as raised:
            from_first_rank(make)
        messages.append(str(raised.value))
    assert messages[0] in messages[1]
