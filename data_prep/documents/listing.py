"""Which files of a folder are documents, and which are not read."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.documents import json_lines
from data_prep.documents.compression import CODECS
from recipe.base.errors import UserError

PARQUET = ".parquet"
LINE_SUFFIXES = tuple(name + codec for name in json_lines.SUFFIXES for codec in ("", *CODECS))
SUFFIXES = (*LINE_SUFFIXES, PARQUET)
KNOWN = f"{', '.join(json_lines.SUFFIXES)} (each also {', '.join(CODECS)}), {PARQUET}"  # for messages
# What tools write beside data: Spark, Parquet, checksums. Names that begin with a dot are left out as well.
_BESIDE_PREFIXES = ("_SUCCESS", "_metadata", "_common_metadata", "_committed_", "_started_")
_BESIDE_SUFFIXES = (".crc", ".md5", ".sha1", ".sha256", ".sha512")


class Files(NamedTuple):
    """The files below a path, both in a stable order."""

    documents: list[Path]
    unread: list[Path]


def document_files(path: str | Path, option: str = "--input") -> list[Path]:
    """Every document file at `path` (a file, or a folder searched through), in a stable order.

    Links are followed; a file of several names is read once, under the first. Of a stage's output in the folder only
    its `documents/` are read. Messages name the path as the value of `option`.

    Raises:
        UserError: nothing there, nothing of a known suffix, a link that leads nowhere, an unfinished stage, a name that
            is not UTF-8.
    """
    path = _led_to(Path(path))
    if path.is_file():
        if not is_named_as_documents(path):
            raise UserError(f"{path} is none of {KNOWN}; convert it or rename it")
        return every_file([path])
    if not path.is_dir():
        wrong = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UserError(f"{option} {path} {wrong}; give a file or folder of documents")
    documents, unread = list_files([path])
    if not documents:
        others = f"; its files are {names_of(unread)}" if unread else ", it is empty"
        raise UserError(f"{option} {path} holds no file of documents{others}; documents are files named {KNOWN}")
    return documents


def unread_files(path: str | Path) -> list[Path]:
    """The files at `path` that `document_files` leaves out, though they may have been meant: of other suffixes, second
    names of a file, single JSON objects. Hidden files, checksums, and a stage's own files are not among them."""
    path = Path(path)
    return list_files([path]).unread if path.is_dir() else []


def names_of(files: list[Path], most: int = 5) -> str:
    """A few of the names, and how many more."""
    return shortened([file.name for file in files], most)


def shortened(items: Sequence[str], most: int = 5) -> str:
    """A list in a sentence, of which a long one is cut."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def list_files(paths: Iterable[Path]) -> Files:
    """The files at several paths together, each once.

    A `.json` file that does not hold lines is taken for a manifest where other files are documents.

    Raises:
        UserError: as `document_files`; a `.json` file that is one array, where no other suffix has documents.
    """
    seen: set[object] = set()
    every = every_file(paths)
    named = [file for file in every if is_named_as_documents(file) and file.is_file() and _is_new(file, seen)]
    single = {file: layout for file in named if _is_json(file) and (layout := _layout(file)) != "lines"}
    documents = [file for file in named if file not in single]
    for file, layout in single.items():
        if not documents or (layout == "array" and all(map(_is_json, documents))):
            json_lines.check_lines(file)
    read = set(named)
    blobs = {os.path.realpath(file) for file in documents if file.is_symlink()}  # of a Hub cache: without a suffix
    others = [file for file in every if file not in read and not (_is_beside(file) or os.path.realpath(file) in blobs)]
    return Files(documents, sorted([*single, *others]))


def every_file(paths: Iterable[Path]) -> list[Path]:
    """The files at several paths in a stable order, links followed, nothing hidden.

    Raises:
        UserError: a link that leads nowhere, a folder that cannot be read, an unfinished stage, a name that is not UTF-8.
    """
    files = {file for path in map(_led_to, paths) for file in (_walk(path, set()) if path.is_dir() else [path])}
    for file in files:
        if not _is_utf8(str(file)):  # JSON holds no other names, and a manifest names every file
            shown = os.fsencode(file).decode("utf-8", "backslashreplace")
            raise UserError(f"the name of {shown} is not UTF-8; rename it")
    return sorted(files)


def matching(pattern: str) -> list[Path]:
    """What a glob matches, in a stable order; `**` stands for any number of folders.

    Raises:
        UserError: a folder that the glob leads through cannot be read, which Python's own passes over.
    """
    steps = Path(pattern).parts
    first = next((number for number, step in enumerate(steps) if glob.has_magic(step)), len(steps))
    for number in range(first, len(steps)):
        above = os.path.join(*steps[:number], "") if number else os.curdir
        for folder in glob.glob(above, recursive=True):
            _entries(Path(folder))
    return sorted(map(Path, glob.glob(pattern, recursive=True)))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_named_as_documents(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(PARQUET)


def _is_json(path: Path) -> bool:
    return path.name.lower().endswith(".json")


def _layout(path: Path) -> str:
    """Of another tool's stage.json, which a walk meets where a folder is no output of a job, that it is one object."""
    return "object" if path.name == "stage.json" else json_lines.layout(path)


def _is_new(path: Path, seen: set[object]) -> bool:
    """Whether no file before it is the same by a link. Inodes count for hard links alone: not every file system has them."""
    status = path.stat()
    identity: object = (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(path)
    new = identity not in seen
    seen.add(identity)
    return new


def _is_beside(path: Path) -> bool:
    return path.name.startswith(_BESIDE_PREFIXES) or path.name.lower().endswith(_BESIDE_SUFFIXES)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Every file below, links followed, nothing hidden; a folder met a second time comes as itself."""
    seen.add(os.path.realpath(folder))
    entries = _entries(folder)
    if any(entry.name == "stage.json" for entry in entries) and is_stage(folder):
        if not (folder / "manifest.json").exists():
            raise UserError(
                f"{folder} is the output of a job that has not finished; run that job again with the same arguments, which resumes it"
            )
        entries = [entry for entry in entries if entry.name == "documents"]
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = _led_to(folder / entry.name) if entry.is_symlink() else folder / entry.name
        if not entry.is_dir() or os.path.realpath(path) in seen:
            yield path
        else:
            yield from _walk(path, seen)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            every = sorted(entries, key=lambda entry: entry.name)
        if not os.access(folder, os.X_OK):  # its names can be read, and no file
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; permit it or give another folder") from None
    return every


def _led_to(path: Path) -> Path:
    try:
        if path.is_symlink():
            os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link that leads to itself; mend or remove it") from None
        if error.errno == errno.ENOENT:
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; mend or remove it"
            ) from None
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return path


def is_stage(folder: Path) -> bool:
    """Whether a folder is the output of a data job; a `stage.json` of something else makes it none."""
    try:
        values = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("schema") == "data_prep.stage"
