"""What every data job has in common: a folder in, a folder out, a manifest, and resumption after a kill.

A stage's output folder holds
  stage.json     written first: the stage, its parameters and inputs; a rerun must give the same
  tasks/         one small JSON per finished task; a rerun skips those
  manifest.json  written last, when all is done: counts in, out and dropped by reason, files with checksums
so a stage can be killed at any moment and run again, and ends in the same bytes.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

import recipe
from data_prep.documents import BadRecord, document_files, read_documents
from recipe.base.errors import UserError
from recipe.base.files import sha256, write_json
from recipe.base.strict import load_json

SCHEMA, VERSION = "data_prep.stage", 1


@dataclass(frozen=True)
class InputFile:
    path: Path
    size: int


class Stage:
    """One run of one data job.

    Raises:
        UserError: from the constructor, when the output folder belongs to another run, is being written by
            another process, or cannot be written.
    """

    def __init__(
        self, name: str, source: str | Path, output: str | Path, parameters: Mapping[str, Any], max_bad: int = 0
    ):
        self.name, self.output, self.max_bad = name, Path(output), max_bad
        if self.output.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"--output {output} lies in --input {source}, which would read what it wrote; choose another"
            )
        self.inputs = [InputFile(path, path.stat().st_size) for path in _inputs(source)]
        self.parameters = json.loads(json.dumps(parameters))
        self.parent = _parent(source)
        self._claim()

    @property
    def finished(self) -> bool:
        return (self.output / "manifest.json").exists()

    def run_tasks(
        self, phase: str, function: Callable[..., dict[str, Any]], tasks: Sequence[Any], workers: int
    ) -> list[dict]:
        """Run `function(task, number)` for every task that is not done yet; returns all results in task order."""
        folder = self.output / "tasks" / phase
        folder.mkdir(parents=True, exist_ok=True)
        markers = [folder / f"{number:05d}.json" for number in range(len(tasks))]
        todo = [number for number, marker in enumerate(markers) if not marker.exists()]
        bad = sum(load_json(m).get("bad_records", 0) for m in markers if m.exists())
        for number, result in _run(
            function, [(n, tasks[n]) for n in todo], workers, f"{self.name}: {phase}", len(tasks)
        ):
            bad += result.get("bad_records", 0)
            if bad > self.max_bad:
                raise UserError(
                    f"{bad} records of the input are no documents, more than --max-bad {self.max_bad}; "
                    f"see {self.output / 'bad_records'}, mend the input or raise --max-bad"
                )
            write_json(markers[number], result)
        return [load_json(marker) for marker in markers]

    def finish(
        self, *, counts: Mapping[str, Any], files: Iterable[Path], results: Mapping[str, Any] | None = None
    ) -> None:
        """Write the manifest: the stage is done."""
        write_json(
            self.output / "manifest.json",
            {
                "schema": SCHEMA,
                "version": VERSION,
                "stage": self.name,
                "code_version": recipe.__version__,
                "parameters": self.parameters,
                "parent": self.parent,
                "counts": counts,
                "files": [
                    {"path": str(f.relative_to(self.output)), "bytes": f.stat().st_size, "sha256": sha256(f)}
                    for f in files
                ],
                "results": results or {},
            },
        )

    def report(self) -> None:
        """Print what the manifest says of this stage, in a few lines."""
        counts = load_json(self.output / "manifest.json")["counts"]
        print(f"{self.name}: {counts['in']:,} in, {counts['out']:,} out -> {self.output}")
        for reason, number in sorted(counts.get("dropped", {}).items(), key=lambda item: -item[1]):
            print(f"  dropped {number:>9,}  {reason}")
        if counts.get("bad_records"):
            print(
                f"  set aside {counts['bad_records']:,} records that are no documents, see {self.output / 'bad_records'}"
            )

    def _claim(self) -> None:
        identity = {
            "schema": SCHEMA,
            "version": VERSION,
            "stage": self.name,
            "parameters": self.parameters,
            "parent": self.parent,
            "inputs": [{"file": f.path.name, "bytes": f.size} for f in self.inputs],
        }
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.output / ".lock", "w")
        except OSError as error:
            raise UserError(f"--output {self.output} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {self.output} is being written by another process; wait for it or choose another"
            ) from None
        path = self.output / "stage.json"
        if not path.exists():
            # A kill may have come before the first file had its name.
            if any(p.name not in (".lock", "stage.json.partial") for p in self.output.iterdir()):
                raise UserError(f"--output {self.output} holds files of something else; choose an empty folder")
            write_json(path, identity)
            return
        different = [key for key, value in load_json(path).items() if identity.get(key) != value]
        if different:
            raise UserError(
                f"--output {self.output} was made with other {', '.join(different)}; choose another folder or delete it"
            )


class BadRecords:
    """Sets the records of one input file aside that are no documents, up to the stage's limit.

    Raises:
        UserError: from a call, at the first record beyond the limit.
    """

    def __init__(self, path: Path, number: int, output: Path, max_bad: int):
        self._path, self._max_bad = path, max_bad
        self._aside = output / "bad_records" / f"{number:05d}.json"
        self._records: list[BadRecord] = []

    def __call__(self, record: BadRecord) -> None:
        self._records.append(record)
        if len(self._records) > self._max_bad:
            self.write()
            raise UserError(
                f"{self._path} record {record.record}: {record.reason}; {len(self._records)} records of it are no "
                f"documents, more than --max-bad {self._max_bad}; see {self._aside}, mend the input or raise --max-bad"
            )

    def __len__(self) -> int:
        return len(self._records)

    def write(self) -> None:
        if self._records:
            write_json(self._aside, [asdict(record) for record in self._records])


def document_task(
    file: InputFile,
    number: int,
    *,
    work: Callable[..., dict[str, Any]],
    output: Path,
    max_bad: int,
    fields: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One input file: hand its documents to `work(documents, number)`, its bad records to `BadRecords`."""
    bad = BadRecords(file.path, number, output, max_bad)
    result = work(read_documents(file.path, bad, fields), number)
    bad.write()
    return {**result, "bad_records": len(bad)}


def for_documents(stage: Stage, **bound: Any) -> Callable[..., dict[str, Any]]:
    """`document_task` bound to a stage, to give to `Stage.run_tasks` with `stage.inputs`."""
    return partial(document_task, output=stage.output, max_bad=stage.max_bad, **bound)


def merged_counts(results: Iterable[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Sum of the nested counters that tasks returned under `key`."""
    total: dict[str, Any] = {}
    for result in results:
        _add(total, result[key])
    return total


def _inputs(source: str | Path) -> list[Path]:
    """Document files of a raw folder, or of the `documents/` of a finished stage."""
    source = Path(source)
    if (source / "stage.json").exists():
        if not (source / "manifest.json").exists():
            raise UserError(f"--input {source} is an unfinished stage; run it again to its end first")
        return document_files(source / "documents")
    return document_files(source)


def _parent(source: str | Path) -> dict[str, str] | None:
    manifest = Path(source) / "manifest.json"
    if not (Path(source) / "stage.json").exists():
        return None
    return {"stage": load_json(manifest)["stage"], "manifest_sha256": sha256(manifest)}


def _run(function, numbered: list[tuple[int, Any]], workers: int, title: str, total: int):
    """Yield (number, result) as tasks finish, in this process when one worker is enough."""
    with tqdm(total=total, initial=total - len(numbered), desc=title, unit="task", disable=None) as bar:
        if workers == 1 or len(numbered) <= 1:
            for number, task in numbered:
                yield number, function(task, number)
                bar.update()
            return
        with ProcessPoolExecutor(min(workers, len(numbered)), mp_context=get_context("spawn")) as pool:
            pending = {pool.submit(function, task, number): number for number, task in numbered}
            try:
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield pending.pop(future), future.result()
                        bar.update()
            except BrokenProcessPool:
                raise UserError(
                    f"a worker of {title} was killed, by the system if memory ran out; run again with fewer --workers"
                ) from None
            finally:
                for future in pending:
                    future.cancel()


def _add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
