"""Checkpoints copied beside the training: bit for bit those of a synchronous save, although tensors change meanwhile.

Copies are made late here: behind a kernel that keeps the GPU busy, on the CPU by a thread that is made to wait.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo

from recipe.base.settings import Checkpoint, Compute
from recipe.checkpoints import snapshot as snapshot_module
from recipe.checkpoints.snapshot import COPIED_AT_ONCE_BYTES, Snapshot
from recipe.checkpoints.store import CheckpointStore
from recipe.checkpoints.stored import TrainState
from recipe.checkpoints.unpickling import only_known_classes
from recipe.run import checkpoint_files as on_disk
from tests.gpu.engines import Case, trained

INFO = CheckpointCommitInfo(tag="step", save_dir="nowhere", save_latest=False)
LATE_CYCLES = 1_000_000_000  # half a second of a GPU of 2 GHz: the host does in it what follows
LARGE = 4 * COPIED_AT_ONCE_BYTES  # elements of fp32; 16 MiB


@contextmanager
def late_copies(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Copies that begin later than what the host does next; gives what lets them begin on a CPU.

    The delay is put right before them, behind the pinning of memory, for which a GPU may be waited for.
    """
    begin, copy = threading.Event(), snapshot_module._copy

    def late(pairs: Any) -> None:
        if device.type == "cuda":
            torch.cuda._sleep(LATE_CYCLES)  # of the stream of the copies
        else:
            begin.wait(10)
        copy(pairs)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot_module, "_copy", late)
        yield begin.set
    begin.set()


def saved(snapshot: Snapshot, value: Any) -> Any:
    """The host's copy of a tensor, or of some, which is made later."""
    snapshot.create(INFO)
    snapshot.save({"w": value}, "file")
    copy = snapshot.files[0][1]["w"]
    snapshot.commit(INFO)
    return copy


def values_of(tensor: torch.Tensor) -> list[float]:
    return sorted({tensor.min().item(), tensor.max().item()})


@pytest.mark.parametrize("planted", [False, True], ids=["held", "let go"])
def test_freed_at_once(planted, device, measured, monkeypatch):
    """A tensor freed as soon as a save has begun is copied with its values; without the hold on it, with others."""
    if planted and device.type == "cpu":
        pytest.skip("not possible here: only a GPU's queue copies what nothing refers to")
    snapshot = Snapshot(copies=True)
    with late_copies(device, monkeypatch) as begin:
        temporary = torch.full((LARGE,), 3.0, device=device)
        copy = saved(snapshot, temporary)
        del temporary
        if planted:
            snapshot._sources = []
        # What training allocates next: the same memory, if nothing holds it.
        others = [torch.full((LARGE,), 7.0, device=device) for _ in range(4)]
        begin()
        snapshot.wait()
    values = values_of(copy)
    measured["values"] = values
    assert (values == [3.0]) is not planted
    del others


@pytest.mark.parametrize("planted", [False, True], ids=["waits", "does not wait"])
def test_update_waits(planted, device, measured, monkeypatch):
    """An update of the weights waits for the copies of a save; one that does not wait spoils them."""
    snapshot, weights = Snapshot(copies=True), torch.full((LARGE,), 3.0, device=device)
    with late_copies(device, monkeypatch) as begin:
        copy = saved(snapshot, weights)
        if not planted:
            threading.Timer(0.1, begin).start()
            snapshot.before_update()
        weights.fill_(7.0)
        begin()
        snapshot.wait()
        snapshot.before_update()
    values = values_of(copy)
    measured["values"] = values
    assert (values == [3.0]) is not planted


class Cudart:
    """CUDA's own functions; what came of each giving back is noted."""

    def __init__(self) -> None:
        self.real: Any = torch.cuda.cudart()
        self.registered: list[int] = []  # bytes
        self.given_back: list[Any] = []  # CUDA's answers

    def cudaHostRegister(self, address: int, size: int, flags: int) -> Any:
        self.registered.append(size)
        return self.real.cudaHostRegister(address, size, flags)

    def cudaHostUnregister(self, address: int) -> Any:
        self.given_back.append(self.real.cudaHostUnregister(address))
        return self.given_back[-1]


def test_pinned_memory(device, measured, monkeypatch):
    """Pinned memory of a snapshot is as large as its tensors, takes copies without a wait, and is given back."""
    if device.type == "cpu":
        pytest.skip("not possible here: memory is pinned for a GPU alone")
    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    sources = [torch.arange(LARGE + odd, device=device) for odd in (0, 1)]
    snapshot = Snapshot(copies=True)
    copies = saved(snapshot, sources)
    snapshot.wait()
    snapshot.before_update()
    for copy, source in zip(copies, sources, strict=True):
        assert copy.is_pinned()
        assert torch.equal(copy, source.cpu())
    assert cudart.registered == [source.nbytes for source in sources]
    torch.cuda.synchronize()
    copied = torch.cuda.Event()
    torch.cuda._sleep(LATE_CYCLES)
    copies[0].copy_(sources[0], non_blocking=True)
    copied.record()
    assert not copied.query(), "the host waited for the copy"
    torch.cuda.synchronize()
    assert cudart.given_back == []
    del snapshot, copies, copy
    gc.collect()
    assert [int(answer) for answer in cudart.given_back] == [0, 0]
    measured["bytes"] = sum(cudart.registered)


def contents(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's files, by file and name."""
    found: dict[str, torch.Tensor] = {}
    with only_known_classes(folder):
        for path in sorted(folder.glob("**/*.pt")):
            state = torch.load(path, map_location="cpu", weights_only=True)
            found |= {f"{path.name} {name}": tensor for name, tensor in snapshot_module._tensors(state)}
    return found


def commit(store: CheckpointStore, training: Any) -> None:
    verdict = training.guard.verdict()
    store.commit(verdict.totals, proof=verdict.proof)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("stage", [1, 3])
def test_saved_beside_training(stage, device, measured, monkeypatch, tmp_path):
    """A checkpoint written beside training equals a synchronous one bit by bit, as does a run resumed from it."""
    case = Case(stage, bf16=device.type == "cuda", compute=Compute(deterministic=True))
    # This model is small: all its tensors but scalars are copied beside the training.
    monkeypatch.setattr(snapshot_module, "COPIED_AT_ONCE_BYTES", 64)
    stores = {
        name: CheckpointStore(tmp_path / name, Checkpoint(every_steps=2, asynchronous=name == "beside"))
        for name in ("at once", "beside")
    }
    for store in stores.values():
        store.folder.mkdir()
    store = stores["beside"]
    store._snapshot = Snapshot(copies=True)
    with trained(case, store=store) as training:
        training.steps(1, 2)
        state = TrainState(step=2, sequences=8, tokens=128)
        stores["at once"].save_now(training.engine, state, keep="")
        with late_copies(device, monkeypatch) as begin:
            store.save(training.engine, state)
            save = store._save
            assert save is not None
            threading.Timer(0.1, begin).start()
            training.steps(3, 3)
            commit(store, training)
        training.steps(4, 4)
        commit(store, training)
        store.finish()
        weights, losses = training.weights(), training.losses
        measured.update(bytes=save.bytes, training_waited_s=round(save.stall_s, 4))
    name = on_disk.checkpoint_name(2)
    expected, found = (contents(stores[of].folder / name) for of in ("at once", "beside"))
    assert len(found) > 20
    assert found.keys() == expected.keys()
    differing = {key for key in expected if not torch.equal(_bits(expected[key]), _bits(found[key]))}
    assert differing == set()
    with trained(case, seed=99) as resumed:
        loaded = store.load(resumed.engine, store.folder / name)
        assert (loaded.step, loaded.tokens) == (2, 128)
        resumed.steps(3, 4)
        assert resumed.losses == losses[2:]
        again = resumed.weights()
    assert {key for key in weights if not torch.equal(weights[key], again[key])} == set()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
