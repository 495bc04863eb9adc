"""What a save copies, and until when it holds on to what it copies; CUDA's part with a stand-in that copies when told."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from contextlib import nullcontext

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.zero.config import ZeroStageEnum

from recipe.checkpoints import snapshot as module
from recipe.checkpoints.snapshot import COPIED_AT_ONCE_BYTES, Snapshot, pinned

INFO = CheckpointCommitInfo(tag="step", save_dir="nowhere", save_latest=False)
LARGE = COPIED_AT_ONCE_BYTES // 4  # elements of fp32


@pytest.fixture(autouse=True)
def _collect_only_what_a_test_makes():
    """Else each collection walks all that torch, transformers and other tests have made, seconds of it."""
    gc.freeze()
    yield
    gc.unfreeze()


class Memory(mmap.mmap):
    """Of a tensor, to see when nothing refers to it any more."""


def temporary(value: float) -> tuple[torch.Tensor, weakref.ref[Memory]]:
    memory = Memory(-1, 4 * LARGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(value), weakref.ref(memory)


class OnGpu(torch.Tensor):
    is_cuda = True


class Queue:
    """A stand-in for CUDA: a stream whose copies are done when the host waits for it."""

    def __init__(self) -> None:
        self.copies: list[list[tuple[torch.Tensor, weakref.ref[torch.Tensor]]]] = []
        self.order: list[str] = []

    def wait_stream(self, _: Queue) -> None:
        self.order.append("the copies wait for the step")

    def wait_event(self, _: Queue) -> None:
        self.order.append("the update waits for the copies")

    def record(self, _: Queue) -> None:
        self.order.append("copies queued")

    def synchronize(self) -> None:
        for pairs in self.copies:
            for target, source in pairs:
                target.copy_(source())
        self.copies = []


@pytest.fixture
def gpu(monkeypatch) -> Queue:
    queue = Queue()
    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: queue)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    # The pairs themselves are kept weakly, as a GPU's queue does: it knows addresses only.
    monkeypatch.setattr(module, "_copy", lambda pairs: queue.copies.append([(t, weakref.ref(s)) for t, s in pairs]))
    return queue


def saved(snapshot: Snapshot, tensor: torch.Tensor) -> torch.Tensor:
    snapshot.create(INFO)
    snapshot.save({"w": tensor}, "file")
    return snapshot.files[0][1]["w"]


@pytest.mark.parametrize("end", ["wait", "before_update"])
def test_what_a_gpu_still_copies_is_held_until_it_has_been_copied(gpu, end):
    snapshot = Snapshot(copies=True)
    source, memory = temporary(3.0)
    copy = saved(snapshot, source.as_subclass(OnGpu))
    del source
    snapshot.commit(INFO)
    gc.collect()
    assert memory() is not None, "a temporary's memory would be used again before it is copied"
    getattr(snapshot, end)()
    gc.collect()
    assert memory() is None
    if end == "wait":
        assert copy.unique().tolist() == [3.0]
    else:
        assert gpu.order[-2:] == ["copies queued", "the update waits for the copies"]


def test_a_tensor_on_the_host_before_those_of_a_gpu_does_not_hide_their_copies(gpu):
    snapshot = Snapshot(copies=True)
    snapshot.create(INFO)
    snapshot.save({"host": torch.ones(LARGE), "w": torch.ones(LARGE).as_subclass(OnGpu)}, "file")
    snapshot.commit(INFO)
    assert gpu.order[-1] == "copies queued"  # by no thread, which would not be waited for on a GPU
    snapshot.before_update()
    assert gpu.order[-1] == "the update waits for the copies"


def test_a_temporary_keeps_its_values_until_the_thread_has_copied_it(monkeypatch):
    go, copy_now = threading.Event(), module._copy
    monkeypatch.setattr(module, "_copy", lambda pairs: go.wait(10) and copy_now(pairs))
    snapshot = Snapshot(copies=True)
    source, memory = temporary(3.0)
    copy = saved(snapshot, source)
    del source
    snapshot.commit(INFO)
    gc.collect()
    assert memory() is not None
    go.set()
    snapshot.before_update()
    gc.collect()
    assert copy.unique().tolist() == [3.0]
    assert memory() is None


def test_small_tensors_are_copied_at_once_and_large_ones_before_the_update():
    snapshot = Snapshot(copies=True)
    small, large = torch.ones(LARGE - 1), torch.ones(LARGE)
    snapshot.create(INFO)
    snapshot.save({"small": small, "large": [large]}, "file")
    small.zero_()  # an expert bias that changes with the step
    snapshot.commit(INFO)
    snapshot.before_update()
    large.zero_()
    (_, state), *_ = snapshot.files
    assert state["small"].unique().tolist() == [1.0]
    assert state["large"][0].unique().tolist() == [1.0]


@pytest.mark.parametrize("size", [LARGE, 1], ids=["copied by the thread", "copied at once"])
def test_what_else_reads_the_tensors_has_read_them_before_the_update(size):
    snapshot, weights, seen = Snapshot(copies=True), torch.ones(size), []
    snapshot.beside = lambda: seen.append(weights.sum().item())
    saved(snapshot, weights)
    snapshot.commit(INFO)
    snapshot.before_update()
    weights.zero_()
    assert seen == [size]


def test_a_gpu_reads_behind_its_copies_and_before_the_update(gpu):
    snapshot = Snapshot(copies=True)
    snapshot.beside = lambda: gpu.order.append("read")
    saved(snapshot, torch.ones(LARGE).as_subclass(OnGpu))
    snapshot.commit(INFO)
    snapshot.before_update()
    assert len(gpu.copies) == 1
    assert gpu.order[-3:] == ["read", "copies queued", "the update waits for the copies"]


def test_what_two_files_share_is_copied_once_and_the_next_save_uses_the_same_memory():
    snapshot, shared = Snapshot(copies=True), torch.ones(LARGE)
    places = []
    for _ in range(2):
        snapshot.create(INFO)
        for path in ("a", "b"):
            snapshot.save({"w": shared}, path)
        snapshot.commit(INFO)
        snapshot.before_update()
        places += [state["w"].data_ptr() for _, state in snapshot.files]
    assert len(set(places)) == 1


class Cudart:
    def __init__(self, error: int = 0) -> None:
        self.registered: dict[int, int] = {}
        self.error = error

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.registered[address] = size
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def cudart(monkeypatch) -> Cudart:
    runtime = Cudart()

    def check_error(error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA error {error}")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    return runtime


def test_pinned_memory_is_of_the_size_asked_for_and_is_given_back_with_its_last_view(cudart):
    size = (1 << 20) + 5  # torch's allocator would take 2 MiB
    buffer = pinned(size)
    assert cudart.registered == {buffer.data_ptr(): size}
    view = buffer[:8].view(torch.int64)
    del buffer
    gc.collect()
    view.fill_(7)
    assert len(cudart.registered) == 1
    del view
    gc.collect()
    assert cudart.registered == {}


def test_memory_that_cannot_be_pinned_is_no_snapshot(cudart, monkeypatch):
    cudart.error = 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        saved(Snapshot(copies=True), torch.ones(LARGE))


def test_the_snapshot_of_a_gpu_pins_what_it_needs_and_no_more(cudart, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    snapshot = Snapshot(copies=True)
    copy = saved(snapshot, torch.ones(LARGE + 3))
    assert sum(cudart.registered.values()) == copy.nbytes == snapshot.bytes


def test_enumerations_are_saved_as_what_they_stand_for():
    """How they are pickled depends on Python's version: by `getattr` in early ones of 3.11, which no reader may allow."""
    snapshot = Snapshot(copies=False)
    snapshot.save({"optimizer": [{"zero_stage": ZeroStageEnum.weights}]}, "states.pt")
    ((_, state),) = snapshot.files
    assert type(state["optimizer"][0]["zero_stage"]) is int
    assert state["optimizer"][0]["zero_stage"] == 3


def test_what_goes_wrong_beside_the_copies_is_told_when_they_are_read():
    def fails() -> None:
        raise MemoryError("no room")

    snapshot = Snapshot(copies=True)
    snapshot.beside = fails
    saved(snapshot, torch.ones(LARGE))
    snapshot.commit(INFO)
    with pytest.raises(MemoryError, match="no room"):
        snapshot.wait()
    snapshot.before_update()
    snapshot.beside = lambda: None
    saved(snapshot, torch.ones(LARGE))
    snapshot.commit(INFO)
    snapshot.wait()
    snapshot.before_update()
