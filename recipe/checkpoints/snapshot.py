"""What DeepSpeed would write to a checkpoint's files, taken to host memory and written while training goes on.

DeepSpeed 0.19.8 hands each file to its `CheckpointEngine`; this is one. Its own ways to write in the background do
not hold here: the fast writer's files do not load under torch's weights-only default, the decoupled one fails on CPU,
and neither checks what it wrote. Weights and moments change only in the optimizer's update, so their copies are made
beside the next forward and backward pass and are waited for before the update (the two phases of CheckFreq, FAST '21).
What changes earlier, such as expert biases, is small and copied at once.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from recipe.base.files import HashedFile
from recipe.engine.deepspeed_private import CheckpointCommitInfo, TorchCheckpointEngine

COPIED_AT_ONCE_BYTES = 1 << 20
CHECKED_AT_ONCE = 1 << 24  # elements, so that the check needs no memory to speak of

Files = Sequence[tuple[Path, Any]]  # each file's path and what torch.save is to write there


class Snapshot(TorchCheckpointEngine):
    """Collects the files of a save. With `copies` they hold host copies, without the live tensors themselves."""

    def __init__(self, copies: bool):
        super().__init__()
        self.copies = copies
        self.files: list[tuple[Path, Any]] = []
        self.bytes = 0
        self.added: list[tuple[Path, Any]] = []  # files of ours, which every save writes beside DeepSpeed's
        self._buffers: list[torch.Tensor] = []  # host memory, used again by every save
        self._used = 0
        self._copied: dict[tuple[Any, ...], torch.Tensor] = {}  # what several files share is copied once
        self._later: list[tuple[torch.Tensor, torch.Tensor]] = []
        # What a GPU is still to copy: DeepSpeed hands over temporaries, whose memory would be used again before that.
        self._sources: list[torch.Tensor] = []
        # What else reads the tensors as they are saved, such as fingerprints: done beside the copies.
        self.beside: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # of the thread
        self._event: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None  # one for all saves: torch keeps memory for each

    def create(self, info: CheckpointCommitInfo) -> None:
        assert self._thread is None, "the copies of the last save are still being made"
        self.files, self.bytes, self._used, self._error = [], 0, 0, None

    def save(self, state_dict: Any, path: str) -> None:
        self.files.append((Path(path), self._taken(state_dict)))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """DeepSpeed has handed over all files."""
        for path, state in self.added:
            self.save(state, str(path))
        self._copied = {}
        later, self._later = self._later, []
        if not later:
            self.beside()
            return True
        # Some, if not all: DeepSpeed keeps a few tensors of its own on the host.
        if any(source.is_cuda for _, source in later):
            stream = self._stream = self._stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                _copy(later)
                self.beside()
            self._event = torch.cuda.Event()
            self._event.record(stream)
            self._sources = [source for _, source in later]
        else:
            self._thread = threading.Thread(target=self._copy_beside, args=(later,), name="snapshot")
            self._thread.start()
        return True

    def release(self) -> None:
        """Let go of the engine that was saved; the host buffers stay for one with tensors of the same sizes."""
        self.files, self._sources, self.beside = [], [], lambda: None

    def preserves_storage_sharing(self) -> bool:
        return False  # spares the clone that DeepSpeed would make of every tensor

    def before_update(self) -> None:
        """Called before the tensors change; on a GPU the update is queued behind the copies, and nothing waits here."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
            self._sources = []  # this stream uses their memory again behind the copies
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Return when the copies can be read.

        Raises:
            what went wrong while they were made.
        """
        if self._event is not None:
            self._event.synchronize()
            self._sources = []
        if (thread := self._thread) is not None:
            thread.join()
        if self._error is not None:
            raise self._error

    def _copy_beside(self, later: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        try:
            _copy(later)
            self.beside()
        except BaseException as error:
            self._error = error

    def _taken(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.bytes += value.numel() * value.element_size()
            return self._host(value.detach()) if self.copies else value.detach()
        if isinstance(value, dict):
            return {key: self._taken(inner) for key, inner in value.items()}
        if isinstance(value, Enum):
            return value.value  # early 3.11 pickles one by `getattr`, which `only_known_classes` refuses
        if type(value) in (list, tuple):
            return type(value)(self._taken(inner) for inner in value)
        return value

    def _host(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        if size < COPIED_AT_ONCE_BYTES:
            return tensor.cpu().clone()
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in self._copied:
            target = self._buffer(size).view(tensor.dtype).view(tensor.shape)
            self._later.append((target, tensor))
            self._copied[key] = target
        return self._copied[key]

    def _buffer(self, size: int) -> torch.Tensor:
        """The next host buffer, exactly of this size: the order and sizes of a run's tensors do not change."""
        if self._used == len(self._buffers) or self._buffers[self._used].numel() != size:
            del self._buffers[self._used :]
            self._buffers.append(pinned(size) if torch.cuda.is_available() else torch.zeros(size, dtype=torch.uint8))
        self._used += 1
        return self._buffers[self._used - 1]


class _PinnedMemory(mmap.mmap):
    """Pages that CUDA can copy to while the host goes on, until nothing refers to them."""

    address: int | None = None

    def register(self, address: int) -> None:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, len(self), 0))
        self.address = address

    def __del__(self) -> None:
        if self.address is not None:
            torch.cuda.cudart().cudaHostUnregister(self.address)


def pinned(size: int) -> torch.Tensor:
    """Pinned host memory of so many bytes, to the page.

    torch's `pin_memory=True` rounds up to a power of two (ATen/core/CachingHostAllocator.h) and keeps what is freed.
    """
    memory = _PinnedMemory(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory as long as there is a view of it
    memory.register(tensor.data_ptr())
    return tensor


def write_files(files: Files, folder: Path) -> dict[str, dict[str, Any]]:
    """Write and flush; returns the size and SHA-256 of each by its name in `folder`."""
    facts = {}
    for path, state in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = HashedFile(path)
        try:
            torch.save(state, handle)  # type: ignore[arg-type]
        except BaseException:
            handle.abandon()
            raise
        facts[str(path.relative_to(folder))] = handle.close()
    return facts


def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source, non_blocking=True)


def not_finite(files: Files) -> str | None:
    """The file and the name of a tensor that holds NaN or infinity, of copies that can be read; None if none does."""
    for path, state in files:
        for name, tensor in _tensors(state):
            rows = tensor.reshape(-1).split(CHECKED_AT_ONCE) if tensor.is_floating_point() else ()
            if not all(bool(torch.isfinite(row).all()) for row in rows):
                return f"{name} in {path.name}"
    return None


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _tensors(inner, f"{name}[{number}]")
