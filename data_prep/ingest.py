#!/usr/bin/env python3
"""Bring one source of sources.yaml into documents: a HuggingFace dataset, streamed, or local files."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_prep.bad_records import BadRecords
from data_prep.command import job_parser
from data_prep.documents import BadRecord, Document, Part, defect, document_files, read_documents, write_part
from data_prep.stage import Stage
from data_prep.tally import Tally, merged, with_totals
from recipe.base.errors import UserError, exit_on_user_error, nearest
from recipe.base.strict import load_yaml, strict_model


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Strict):
    """Arguments of `datasets.load_dataset`."""

    path: str  # of a dataset, or a builder (json, parquet) with data_files
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | None = None


class SourceConfig(_Strict):
    """One source. Exactly one of `hub` and `files`."""

    hub: Hub | None = None
    files: str | None = None  # a path or glob, relative to the folder the command runs in
    lang: str
    license: str
    expected_tokens: float = Field(gt=0)  # of the source as it is published, in tokens of about 4.4 bytes
    tier: Literal[1, 2, 3]  # 1: best, more of it towards the end of training
    weight: float = Field(1.0, gt=0)  # beside temperature sampling
    fields: dict[str, str] = {}  # our name -> theirs; text at least where they differ

    def problems(self) -> list[str]:
        return [] if (self.hub is None) != (self.files is None) else ["give exactly one of 'hub' and 'files'"]


class SourcesConfig(_Strict):
    sources: dict[str, SourceConfig]

    def problems(self) -> list[str]:
        return [f"sources.{name}: {p}" for name, source in self.sources.items() for p in source.problems()]


def load_sources(path: Path) -> dict[str, SourceConfig]:
    return strict_model(SourcesConfig, load_yaml(path), path).sources


def open_hub(hub: Hub) -> Any:
    """The streaming dataset.

    Raises:
        UserError: it does not exist or cannot be reached.
    """
    import datasets

    try:
        return datasets.load_dataset(
            hub.path, hub.name, split=hub.split, revision=hub.revision, data_files=hub.data_files, streaming=True
        )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"dataset {hub.path} cannot be opened ({first}); check its name and the network") from None


def hub_documents(hub: Hub, shard: int, shards: int, fields: dict[str, str], on_bad: Any) -> Iterator[Document]:
    """Documents of one shard of a hub dataset; a row without an id is named by its place."""
    stream = open_hub(hub).shard(num_shards=shards, index=shard, contiguous=True)
    for row, record in enumerate(stream):
        document = {name: record.pop(theirs) for name, theirs in fields.items() if theirs in record} | {
            name: value for name, value in record.items() if name in ("id", "text", "url")
        }
        document = {"id": f"{shard:05d}/{row:09d}", **{k: v for k, v in document.items() if v is not None}}
        reason = defect(document)
        if reason is None:
            yield document
        else:
            on_bad(BadRecord(f"shard {shard}", row + 1, reason, repr(record)[:200]))


def ingest_task(
    task: Part | tuple[int, int],
    number: int,
    *,
    name: str,
    source: SourceConfig,
    limit: int | None,
    output: Path,
    max_bad: int,
) -> dict[str, Any]:
    """One part of the source into documents with its labels; `limit` bounds the documents of the part."""
    tally = Tally()
    place = task.path if isinstance(task, Part) else Path(f"{source.hub.path if source.hub else name} shard {task[0]}")
    bad = BadRecords(place, number, output, max_bad)
    if isinstance(task, Part):
        documents = read_documents(task, bad, source.fields)
    else:
        assert source.hub is not None
        documents = hub_documents(source.hub, *task, source.fields, bad)

    def labelled() -> Iterator[Document]:
        for count, document in enumerate(documents):
            if count == limit:
                return
            size = len(document["text"].encode())
            tally.add(source.lang, name, size, None, size)
            yield {
                **document,
                "id": f"{name}/{document['id']}",
                "lang": source.lang,
                "source": name,
                "license": source.license,
            }

    written = write_part(output / "documents", number, labelled())
    bad.write()
    return {"groups": tally.groups(), "bad_records": len(bad), "files": written.below(output)}


def files_of(source: SourceConfig) -> list[Path]:
    """The local files of a source; none of a hub dataset."""
    if source.files is None:
        return []
    found = sorted(glob.glob(source.files, recursive=True))
    if not found:
        raise UserError(f"files {source.files} match nothing; correct the glob or fetch them")
    return [file for path in found for file in document_files(path)]


def shards_of(hub: Hub) -> list[tuple[int, int]]:
    """The shards of a hub dataset, each with their number."""
    shards = open_hub(hub).num_shards
    return [(shard, shards) for shard in range(shards)]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/ingest.py --source fineweb-edu --output raw/fineweb-edu --limit 1000",
        "sources.yaml",
        reads_input=False,
    )
    parser.add_argument("--source", required=True, help="name in the config")
    parser.add_argument("--limit", type=int, help="documents per part, for a trial")
    args = parser.parse_args(argv)
    sources = load_sources(args.config)
    if args.source not in sources:
        raise UserError(f"--source {args.source} is not in {args.config}{nearest(args.source, sources)}")
    source = sources[args.source]
    parameters = {"name": args.source, "limit": args.limit, **source.model_dump(mode="json")}
    stage = Stage.of("ingest", args, parameters, files=files_of(source))
    if not stage.finished:
        task = partial(
            ingest_task, name=args.source, source=source, limit=args.limit, output=stage.output, max_bad=stage.max_bad
        )
        results = stage.run_tasks("documents", task, stage.parts if source.hub is None else shards_of(source.hub))
        counts = with_totals(merged(result["groups"] for result in results))
        stage.must_have_documents(counts["in"], of=f"--source {args.source}")
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        stage.finish(counts=counts, written=results)
    stage.report()


if __name__ == "__main__":
    raise SystemExit(main())
