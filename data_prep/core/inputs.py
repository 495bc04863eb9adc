"""What a stage reads: its files, how a rerun knows them again, and a digest of what each task read.

Identity is content, not path. Sizes and times of change are looked at first, since inputs are terabytes; where only
a time differs, what the finished tasks had read is read again and compared. Tools that copy can set the time of the
content (cp -p, rsync -t), but not that of the inode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_prep.documents.json_lines import MAX_RECORD_BYTES
from data_prep.documents.listing import is_parquet, is_stage, shortened
from data_prep.documents.reading import Part, document_files, parts_of
from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json

CHUNK_BYTES = 1 << 20
TIMES = ("mtime_ns", "ctime_ns")  # of stat(2): when the content changed, and when the inode did
CHANGED = "changed since this stage read it; choose another --output or restore it"


def input_folder(source: Path) -> Path:
    """Where a stage's input lies: a raw folder or file as it is, the documents of a finished stage.

    Raises:
        UserError: the stage is not finished.
    """
    if not is_stage(source):
        return source
    if not (source / "manifest.json").exists():
        raise UserError(
            f"--input {source} is the output of a job that has not finished; run that job again with the same arguments, which resumes it"
        )
    return source / "documents"


def parent_of(source: Path) -> dict[str, str] | None:
    """The stage that wrote the input; None for a raw folder."""
    manifest = source / "manifest.json"
    if not is_stage(source):
        return None
    return {"stage": load_json(manifest)["stage"], "manifest_sha256": sha256(manifest)}


@dataclass(frozen=True)
class Reading:
    """A part of the input as a task: what to read, and what it must be."""

    part: Part
    file: str  # its path, relative to the input
    bytes: int  # of the whole file, when the stage began
    xxh3_128: str | None  # of the part, where it is known already
    otherwise: str  # what to tell the user where the part is not that


class Inputs:
    """The input files of a stage, each with its path relative to `root`, its size and its time of change.

    Args:
        files: all of them, below `root`.
        listed: by relative path, what the manifest of the stage that wrote them says of each.

    Raises:
        UserError: a file is not what the manifest lists.
    """

    def __init__(self, root: Path, files: Sequence[Path], listed: dict[str, dict[str, Any]] | None = None):
        self.root, self.files = root, list(files)
        self.facts: dict[str, dict[str, Any]] = {}
        for file in self.files:
            status = file.stat()
            name = str(file.relative_to(root))
            times = {time: getattr(status, f"st_{time}") for time in TIMES}
            self.facts[name] = {"file": name, "bytes": status.st_size, **times}
        self._listed = listed or {}
        self._digests: dict[tuple[str, int, int | None], str] = {}
        if listed is not None:
            self._compare_with_manifest()

    @classmethod
    def of(cls, source: Path) -> Inputs:
        """The input that --input names."""
        if is_stage(source):
            files = document_files(input_folder(source))
            return cls(source, files, {entry["path"]: entry for entry in load_json(source / "manifest.json")["files"]})
        return cls(source.parent if source.is_file() else source, document_files(source))

    @classmethod
    def of_files(cls, files: Sequence[Path], root: Path | None = None) -> Inputs:
        """Input files below `root`, or below the folder that they share."""
        if root is None:
            root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
        return cls(root, files)

    @cached_property
    def parts(self) -> list[Part]:
        """The files as tasks, large ones cut where they can be; records without an id are numbered within the input."""
        return [part for file in self.files for part in parts_of(file, name=str(file.relative_to(self.root)))]

    def _compare_with_manifest(self) -> None:
        differences = [f"{name} is missing" for name in self._listed if name not in self.facts]
        for name, facts in self.facts.items():
            if name not in self._listed:
                differences.append(f"{name} is not listed")
            elif facts["bytes"] != self._listed[name]["bytes"]:
                differences.append(f"{name} has {facts['bytes']:,} bytes, not {self._listed[name]['bytes']:,}")
        if differences:
            raise UserError(
                f"--input {self.root} is not what its manifest.json lists: {shortened(differences)}; "
                "restore it or run the job that wrote it again"
            )

    def differences(self, recorded: Sequence[dict[str, Any]]) -> list[str]:
        """What of the input differs from what a stage has recorded, but for times of change."""
        before = {facts["file"]: facts for facts in recorded}
        missing = [f"{name} is missing" for name in before if name not in self.facts]
        new = [f"{name} is new" for name in self.facts if name not in before]
        return [*missing, *new] + [
            f"{name} changed from {before[name]['bytes']:,} to {facts['bytes']:,} bytes"
            for name, facts in self.facts.items()
            if name in before and before[name]["bytes"] != facts["bytes"]
        ]

    def touched(self, recorded: Sequence[dict[str, Any]]) -> set[str]:
        """Files of which a time of change is not what a stage has recorded."""
        return {
            facts["file"]
            for facts in recorded
            if any(facts.get(time) != self.facts[facts["file"]][time] for time in TIMES)
        }

    def reading(self, part: Part) -> Reading:
        """The task of reading a part: as it was read before, or as the manifest of the stage that wrote it says."""
        name = str(part.path.relative_to(self.root))
        known = self._digests.get((name, part.start, part.stop))
        if known is None and part.start == 0 and part.stop is None:
            known = self._listed.get(name, {}).get("xxh3_128")
            otherwise = (
                f"is not what {self.root / 'manifest.json'} lists; restore it or run the job that wrote it again"
            )
        else:
            otherwise = CHANGED
        return Reading(part, name, self.facts[name]["bytes"], known, otherwise)

    def again(self, read: dict[str, Any]) -> Reading:
        """The task of reading again what a finished task has recorded as read."""
        part = Part(self.root / read["file"], read["start"], read["stop"])
        return Reading(part, read["file"], self.facts[read["file"]]["bytes"], read["xxh3_128"], CHANGED)

    def remember(self, read: dict[str, Any]) -> None:
        """Note what a task has read, so that a later phase must find the same."""
        self._digests[read["file"], read["start"], read["stop"]] = read["xxh3_128"]


def read_part(task: Reading, number: int, *, function: Callable[[Part, int], dict[str, Any]]) -> dict[str, Any]:
    """`function(part, number)`, its result with a digest of what it read.

    Raises:
        UserError: the part is not what it must be, or changed while it was read.
    """
    path = task.part.path
    before = _state(path)
    if before[0] != task.bytes:
        raise UserError(f"{path} changed since this stage began; choose another --output or restore it")
    digest = part_digest(task.part)
    if task.xxh3_128 not in (None, digest):
        raise UserError(f"{path} {task.otherwise}")
    result = function(task.part, number)
    if _state(path) != before:
        raise UserError(f"{path} changed while it was read; run again when nothing writes to it")
    read = {"file": task.file, "start": task.part.start, "stop": task.part.stop, "xxh3_128": digest}
    return {**result, "read": read}


def only_read(part: Part, number: int) -> dict[str, Any]:
    """The function of a task that only compares and records what a part is."""
    return {}


def part_digest(part: Part) -> str:
    """XXH3-128 of the bytes that a task reads of a file: those of its lines, or of its row groups and the footer."""
    digest = xxhash.xxh3_128()
    try:
        with open(part.path, "rb") as raw:
            for start, stop in _byte_ranges(part):
                raw.seek(start)
                while chunk := raw.read(CHUNK_BYTES if stop is None else min(CHUNK_BYTES, stop - raw.tell())):
                    digest.update(chunk)
            if part.stop is not None and not is_parquet(part.path):
                # The last line of a part ends in the bytes of the next one; no more of it counts than a record may have.
                raw.seek(part.stop - 1)
                left = MAX_RECORD_BYTES
                while left and (tail := raw.readline(min(left, CHUNK_BYTES))):
                    digest.update(tail)
                    left = 0 if tail.endswith(b"\n") else left - len(tail)
    except pa.ArrowInvalid as error:
        raise UserError(f"{part.path} is damaged or truncated; fetch it again or remove it ({error})") from None
    except OSError as error:
        raise UserError(f"{part.path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _byte_ranges(part: Part) -> Iterator[tuple[int, int | None]]:
    if not is_parquet(part.path):
        yield part.start, part.stop
        return
    with pq.ParquetFile(part.path) as file:
        metadata = file.metadata
    stop = metadata.num_row_groups if part.stop is None else part.stop
    if part.start == 0 and stop == metadata.num_row_groups:
        yield 0, None
        return
    for group in range(part.start, stop):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            start = min(offset for offset in offsets if offset is not None)
            yield start, start + column.total_compressed_size
    yield max(0, part.path.stat().st_size - metadata.serialized_size - 8), None  # its length and magic are the last 8


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return status.st_size, status.st_mtime_ns
