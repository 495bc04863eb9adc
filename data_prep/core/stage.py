"""What every data job has in common: a folder in, a folder out, a manifest, and resumption after a kill.

A stage's output folder holds
  stage.json     written first: the stage, its parameters and inputs; a rerun must give the same
  tasks/         one small JSON per finished task, with a digest of what it read; a rerun skips those
  exchange/      rows on their way between two phases; gone when the stage is done
  manifest.json  written last, when all is done: counts in, out and dropped by reason, files with checksums
so a stage can be killed at any moment and run again, and ends in the same bytes. Its work is a list of
independent tasks over parts of the input, and small merges, which any engine can run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import recipe
from data_prep.core.bad_records import WHAT_TO_DO, BadRecords
from data_prep.core.engines import Engine, LocalEngine, make_engine
from data_prep.core.following import following_command, is_driven
from data_prep.core.inputs import Inputs, input_folder, only_read, parent_of, read_part
from data_prep.core.partial_files import remove_partial_files
from data_prep.core.progress import Progress
from data_prep.core.reasons import sentence
from data_prep.core.shuffle import Shuffle
from data_prep.core.slurm import end_recorded_jobs
from data_prep.core.tally import by
from data_prep.documents.listing import shortened
from data_prep.documents.reading import Part, numbered_documents, read_documents, unread_files
from recipe.base.errors import UserError
from recipe.base.files import sha256, write_json
from recipe.base.output_paths import check_output_folder
from recipe.base.strict import load_json
from recipe.base.tables import duration, size

SCHEMA, VERSION = "data_prep.stage", 3


class Stage:
    """One run of one data job.

    Args:
        source: what --input names; None for a job without.
        files, root: input files of a job without --input, and the folder that they are named below.
        parent: the stage that wrote these files, where it is one.

    Raises:
        UserError: from the constructor, when the output folder belongs to another run, is being written by
            another process, or cannot be written; when the input is not what this stage has read, or not what
            the stage that wrote it has listed.
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
        files: Sequence[Path] = (),
        root: Path | None = None,
        parent: Path | None = None,
    ):
        self.name, self.output, self.max_bad, self.workers = name, Path(output), max_bad, workers
        check_output_folder("--output", self.output)
        self.engine = engine or LocalEngine(self.output / ".engine")
        source = None if source is None else Path(source)
        if source is not None and _lies_in(self.output, source):
            raise UserError(
                f"--output {output} lies in --input {source}, which would read what it wrote; choose another"
            )
        self.inputs = Inputs.of_files(files, root) if source is None else Inputs.of(source)
        self.parameters = json.loads(json.dumps(parameters))
        parent = source or parent
        self.parent = None if parent is None else parent_of(parent)
        self._source = source
        self._progress, self._started = Progress(name), time.monotonic()
        self._claim()
        self._was_finished = self.finished
        self._tell_unread()
        if not self.finished:
            self._progress.start(self._reads())

    @classmethod
    def of(
        cls,
        name: str,
        args: Namespace,
        parameters: Mapping[str, Any],
        files: Sequence[Path] = (),
        root: Path | None = None,
        parent: Path | None = None,
    ) -> Stage:
        """The stage that the arguments of `job_parser` describe."""
        engine = make_engine(args.engine, args.engine_option, args.output / ".engine")
        source = getattr(args, "input", None)
        return cls(name, source, args.output, parameters, args.max_bad, args.workers, engine, files, root, parent)

    @property
    def finished(self) -> bool:
        return (self.output / "manifest.json").exists()

    @property
    def parts(self) -> list[Part]:
        """The input as tasks."""
        return self.inputs.parts

    def shuffle(self, name: str) -> Shuffle:
        return Shuffle(self.output / "exchange" / name)

    @cached_property
    def unread(self) -> list[str]:
        """Files of the input folder that are no documents, relative to it."""
        if self._source is None:
            return []
        folder = input_folder(self._source)
        return [str(path.relative_to(folder)) for path in unread_files(folder)]

    def run_tasks(
        self, phase: str, function: Callable[..., dict[str, Any]], tasks: Sequence[Any], workers: int | None = None
    ) -> list[dict]:
        """Run `function(task, number)` for every task that is not done yet; returns all results in task order.

        Of a part of the input the result also says what was read; a later phase must read the same.
        """
        folder = self.output / "tasks" / phase
        folder.mkdir(parents=True, exist_ok=True)
        if tasks and all(isinstance(task, Part) for task in tasks):
            tasks = [self.inputs.reading(part) for part in tasks]
            function = partial(read_part, function=function)
        markers = [folder / f"{number:05d}.json" for number in range(len(tasks))]
        done = {number: load_json(marker) for number, marker in enumerate(markers) if marker.exists()}
        todo = [(number, task) for number, task in enumerate(tasks) if number not in done]
        bad = sum(result.get("bad_records", 0) for result in done.values())
        title = f"{self.name}: {phase}"
        with (
            _resumable(),
            self._progress.phase(phase, len(tasks), len(done)) as progress,
            closing(self.engine.run(function, todo, workers or self.workers, title)) as finished,
        ):
            for number, result in finished:
                bad += result.get("bad_records", 0)
                if bad > self.max_bad:
                    raise UserError(
                        f"{bad} records of the input have no usable text, more than --max-bad {self.max_bad}; "
                        f"{self._bad_records_say()}; {WHAT_TO_DO}"
                    )
                write_json(markers[number], result)
                progress.advance()
        results = [load_json(marker) for marker in markers]
        for result in results:
            if "read" in result:
                self.inputs.remember(result["read"])
        return results

    def must_have_documents(self, documents: int, of: str | None = None) -> None:
        """Raises UserError if there were none, with the reason why; `of` names the input where --input does not."""
        if documents:
            return
        of = of or f"--input {self._source}"
        bad = len([record for path in self._bad_records() for record in load_json(path)])
        if bad:
            raise UserError(
                f"{of} holds no documents: all of its {bad:,} records were set aside; {self._bad_records_say()}; "
                "correct the input and choose another --output"
            )
        raise UserError(f"{of} holds no documents; give files with at least one")

    def _bad_records(self) -> list[Path]:
        return sorted((self.output / "bad_records").glob("*.json"), key=lambda path: int(path.stem))

    def _bad_records_say(self) -> str:
        """The first reason of a record that was set aside, and where they all are."""
        first = load_json(self._bad_records()[0])[0]
        begins = " ".join(first["start"].split())[:80]
        return (
            f"the first, record {first['record']} of {first['file']}: {first['reason']}, in {begins}; "
            f"see {self.output / 'bad_records'}"
        )

    def finish(
        self,
        *,
        counts: Mapping[str, Any],
        files: Iterable[Path] = (),
        written: Iterable[Mapping[str, Any]] = (),
        results: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the manifest: the stage is done.

        Args:
            files: few and small ones, whose checksums are computed here.
            written: results of tasks, each with the `files` that it wrote.
        """
        listed = [entry for result in written for entry in result["files"]]
        listed += [
            {"path": str(f.relative_to(self.output)), "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files
        ]
        remove_partial_files(self.output)
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
                "files": listed,
                "unread": self.unread,
                "results": results or {},
            },
        )
        self._remove_scratch()

    def report(self, kept: str = "out") -> None:
        """Print what the manifest says of this stage, in a few lines.

        Args:
            kept: what the job has done with the documents that were not dropped.
        """
        manifest = load_json(self.output / "manifest.json")
        counts = manifest["counts"]
        took = "finished before" if self._was_finished else duration(time.monotonic() - self._started)
        print(f"{self.name}: {_documents(counts['in'])} in, {counts['out']:,} {kept}, {took} -> {self.output}")
        for reason, number in sorted(counts.get("dropped", {}).items(), key=lambda item: -item[1]):
            languages = [
                lang for lang, group in by(counts.get("groups", {}), "language").items() if reason in group["dropped"]
            ]
            print(f"  dropped {number:>9,}  {sentence(reason, manifest['parameters'], languages)} ({reason})")
        if counts.get("bad_records"):
            number = counts["bad_records"]
            print(
                f"  set aside {number:,} {'record' if number == 1 else 'records'} without usable text, with the reasons in "
                f"{self.output / 'bad_records'}"
            )
        if not counts["out"]:
            print(f"  note: no document is left; {self._look_at_dropped()}")

    def _look_at_dropped(self) -> str:
        if (self.output / "dropped").is_dir():
            return f"read some that were dropped in {self.output / 'dropped'}, and compare them with --config"
        return "read the reasons above"

    def tell_next(self, tokenizer: Path | None = None) -> None:
        """Print the command that usually follows, last of all; none where a script runs it anyway."""
        command = following_command(self.name, self.output, self._source, tokenizer)
        if command and load_json(self.output / "manifest.json")["counts"]["out"] and not is_driven(self.output):
            print(f"next: {command}")

    def _remove_scratch(self) -> None:
        shutil.rmtree(self.output / "exchange", ignore_errors=True)
        self._remove_engine_files()

    def _remove_engine_files(self) -> None:
        shutil.rmtree(self.output / ".engine", ignore_errors=True)

    def _reads(self) -> str:
        files, read = len(self.inputs.files), sum(fact["bytes"] for fact in self.inputs.facts.values())
        reads = f"reads {files:,} {'file' if files == 1 else 'files'}, {size(read)}, " if files else ""
        return (
            f"{reads}{self.workers} {'task' if self.workers == 1 else 'tasks'} at the same time, writes {self.output}"
        )

    def _tell_unread(self) -> None:
        if not self.finished and self.unread:
            number = len(self.unread)
            files = "1 file of --input is" if number == 1 else f"{number:,} files of --input are"
            print(f"{files} not read as documents: {shortened(self.unread)}")

    def _refuse_other_files(self) -> None:
        """Before the lock is made, which would be one more file in a folder of something else."""
        # A kill may have come before the first file had its name.
        others = self.output.is_dir() and any(
            path.name not in (".lock", "stage.json.partial") for path in self.output.iterdir()
        )
        # Looked for last: a stage that another process begins has this file before all others.
        if others and not (self.output / "stage.json").exists():
            raise UserError(f"--output {self.output} holds files of something else; choose a new or empty folder")

    def _claim(self) -> None:
        try:
            self._refuse_other_files()
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
        # Whatever engine is asked for now, jobs of Slurm that outlived their driver must not write beside it.
        end_recorded_jobs(self.output / ".engine")
        identity = {
            "schema": SCHEMA,
            "version": VERSION,
            "stage": self.name,
            "parameters": self.parameters,
            "parent": self.parent,
            "inputs": list(self.inputs.facts.values()),
        }
        path = self.output / "stage.json"
        if path.exists():
            self._must_be_the_same(identity, load_json(path))
            return
        write_json(path, identity)

    def _must_be_the_same(self, identity: dict[str, Any], recorded: dict[str, Any]) -> None:
        """Compare with what an earlier run has recorded, and note new times of change of unchanged inputs."""
        if recorded.get("version") != VERSION:
            raise UserError(
                f"--output {self.output} was made by another version of the data jobs (its format is "
                f"{recorded.get('version')}, not {VERSION}); choose another folder or delete it"
            )
        different = [key for key, value in recorded.items() if key != "inputs" and identity.get(key) != value]
        if different:
            raise UserError(
                f"--output {self.output} was made with other {', '.join(different)}; choose another folder or delete it"
            )
        differences = self.inputs.differences(recorded["inputs"])
        if differences:
            raise UserError(
                f"--output {self.output} was made with other inputs: {shortened(differences)}; "
                "restore them or choose another folder"
            )
        touched = self.inputs.touched(recorded["inputs"])
        if touched:
            # Results that a killed driver has not read are of inputs as they were: none is taken for those of now.
            self._remove_engine_files()
            self._compare_again(touched)
            self._remove_engine_files()
            write_json(self.output / "stage.json", identity)
        if self.finished:  # a kill may have come between the manifest and this
            self._remove_scratch()
        else:  # those of a full disk take the room that is needed now
            remove_partial_files(self.output)

    def _compare_again(self, touched: set[str]) -> None:
        """Read again what the finished tasks have read of these files.

        Raises:
            UserError: something else than before.
        """
        markers = sorted((self.output / "tasks").glob("*/*.json"))
        reads = [result["read"] for result in map(load_json, markers) if "read" in result]
        again = {self.inputs.again(read) for read in reads if read["file"] in touched}
        tasks = list(enumerate(sorted(again, key=lambda task: (task.file, task.part.start))))
        title = f"{self.name}: inputs compared"
        with closing(self.engine.run(partial(read_part, function=only_read), tasks, self.workers, title)) as finished:
            for _ in finished:
                pass


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C in here loses nothing that is done, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished tasks are kept, run the same command again to go on") from None


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"


def _lies_in(path: Path, folder: Path) -> bool:
    # Path.resolve raises at a link to itself, which is told when the files are listed.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


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
