"""TensorBoard's events, so that a disk that is full for a while loses none of them and ends nothing."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from recipe.base.files import write_all

PENDING_BYTES = 64 << 20  # that are kept until there is room; what comes then is lost


class EventFile:
    """TensorBoard's event file, written by who flushes it. The package's own writer uses a thread, which a full disk ends."""

    _number = 0

    def __init__(self, folder: str):
        EventFile._number += 1
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{EventFile._number}"
        self._folder, self._path = folder, Path(folder) / name
        self._pending = bytearray()
        self._records = RecordWriter(self)
        self._written = 0  # bytes of whole records
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: bytes) -> None:
        """A whole record, from RecordWriter."""
        if len(self._pending) + len(record) <= PENDING_BYTES:
            self._pending += record

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Raises OSError where the records cannot be written; they are kept, and what was written of them is undone."""
        if not self._pending:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Opened each time: a network file system can tell only at the close that there was no room.
        with open(self._path, "ab", buffering=0) as handle:
            handle.truncate(self._written)
            write_all(handle, self._pending)
        self._written += len(self._pending)
        self._pending.clear()

    def close(self) -> None:
        self.flush()

    def get_logdir(self) -> str:
        return self._folder


class _EventFileWriter(FileWriter):
    def __init__(self, folder: str):
        self.event_writer = EventFile(folder)


class Board(SummaryWriter):
    """TensorBoard's writer over an `EventFile`: only `flush` and `close` write, and raise OSError.

    Args:
        purge_step: TensorBoard hides what an earlier attempt logged from this step on.
    """

    def __init__(self, folder: Path, purge_step: int):
        super().__init__(str(folder), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        writer: FileWriter | None = self.file_writer
        if writer is None:
            writer = _EventFileWriter(self.log_dir)
            self.file_writer, self.all_writers = writer, {self.log_dir: writer}  # type: ignore[assignment]
            if self.purge_step is not None:
                writer.add_event(Event(step=self.purge_step, file_version="brain.Event:2"))
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return writer
