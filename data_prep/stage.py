"""What every data job has in common: a folder in, a folder out, a manifest, and resumption after a kill.

A stage's output folder holds
  stage.json     written first: the stage, its parameters and inputs; a rerun must give the same
  tasks/         one small JSON per finished task; a rerun skips those
  exchange/      rows on their way between two phases; gone when the stage is done
  manifest.json  written last, when all is done: counts in, out and dropped by reason, files with checksums
so a stage can be killed at any moment and run again, and ends in the same bytes. Its work is a list of
independent tasks over parts of the input, and small merges, which any engine can run.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import recipe
from data_prep.bad_records import BadRecords
from data_prep.documents import Part, document_files, numbered_documents, parts_of, read_documents
from data_prep.engines import Engine, LocalEngine, make_engine
from data_prep.exchange import Exchange
from recipe.base.errors import UserError
from recipe.base.files import sha256, write_json
from recipe.base.strict import load_json

SCHEMA, VERSION = "data_prep.stage", 2


class Stage:
    """One run of one data job.

    Raises:
        UserError: from the constructor, when the output folder belongs to another run, is being written by
            another process, or cannot be written.
    """

    def __init__(
        self,
        name: str,
        source: str | Path | None,
        output: str | Path,
        parameters: Mapping[str, Any],
        max_bad: int = 0,
        workers: int = 1,
        engine: Engine | None = None,
    ):
        self.name, self.output, self.max_bad, self.workers = name, Path(output), max_bad, workers
        self.engine = engine or LocalEngine()
        if source is not None and self.output.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"--output {output} lies in --input {source}, which would read what it wrote; choose another"
            )
        self.files = _inputs(source) if source is not None else []
        self.parameters = json.loads(json.dumps(parameters))
        self.parent = _parent(source) if source is not None else None
        self._claim()

    @classmethod
    def of(cls, name: str, args: Namespace, parameters: Mapping[str, Any]) -> Stage:
        """The stage that the arguments of `job_parser` describe."""
        engine = make_engine(args.engine, args.engine_option, args.output / ".engine")
        return cls(name, getattr(args, "input", None), args.output, parameters, args.max_bad, args.workers, engine)

    @property
    def finished(self) -> bool:
        return (self.output / "manifest.json").exists()

    @cached_property
    def parts(self) -> list[Part]:
        """The input as tasks: files, large ones cut where they can be."""
        return [part for file in self.files for part in parts_of(file)]

    def exchange(self, name: str) -> Exchange:
        return Exchange(self.output / "exchange" / name)

    def run_tasks(
        self, phase: str, function: Callable[..., dict[str, Any]], tasks: Sequence[Any], workers: int | None = None
    ) -> list[dict]:
        """Run `function(task, number)` for every task that is not done yet; returns all results in task order."""
        folder = self.output / "tasks" / phase
        folder.mkdir(parents=True, exist_ok=True)
        markers = [folder / f"{number:05d}.json" for number in range(len(tasks))]
        todo = [(number, tasks[number]) for number, marker in enumerate(markers) if not marker.exists()]
        bad = sum(load_json(m).get("bad_records", 0) for m in markers if m.exists())
        title = f"{self.name}: {phase}"
        with tqdm(total=len(tasks), initial=len(tasks) - len(todo), desc=title, unit="task", disable=None) as bar:
            for number, result in self.engine.run(function, todo, workers or self.workers, title):
                bad += result.get("bad_records", 0)
                if bad > self.max_bad:
                    raise UserError(
                        f"{bad} records of the input are no documents, more than --max-bad {self.max_bad}; "
                        f"see {self.output / 'bad_records'}, mend the input or raise --max-bad"
                    )
                write_json(markers[number], result)
                bar.update()
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
        self._remove_scratch()

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

    def _remove_scratch(self) -> None:
        for name in ("exchange", ".engine"):
            shutil.rmtree(self.output / name, ignore_errors=True)

    def _claim(self) -> None:
        identity = {
            "schema": SCHEMA,
            "version": VERSION,
            "stage": self.name,
            "parameters": self.parameters,
            "parent": self.parent,
            "inputs": [{"file": f.name, "bytes": f.stat().st_size} for f in self.files],
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
        if self.finished:  # a kill may have come between the manifest and this
            self._remove_scratch()


def document_task(
    part: Part,
    number: int,
    *,
    work: Callable[..., dict[str, Any]],
    output: Path,
    max_bad: int,
    numbered: bool = False,
    fields: dict[str, str] | None = None,
) -> dict[str, Any]:
    """One part of the input: hand its documents to `work(documents, number)`, its bad records to `BadRecords`.

    With `numbered` the documents come as (record number, document).
    """
    bad = BadRecords(part.path, number, output, max_bad)
    result = work((numbered_documents if numbered else read_documents)(part, bad, fields), number)
    bad.write()
    return {**result, "bad_records": len(bad)}


def for_documents(stage: Stage, **bound: Any) -> Callable[..., dict[str, Any]]:
    """`document_task` bound to a stage, to give to `Stage.run_tasks` with `stage.parts`."""
    return partial(document_task, output=stage.output, max_bad=stage.max_bad, **bound)


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
