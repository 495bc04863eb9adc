#!/usr/bin/env python3
"""Bring one source of sources.yaml into documents: a HuggingFace dataset, streamed, or local files."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_prep.core.bad_records import BadRecords
from data_prep.core.command import job_parser
from data_prep.core.stage import Stage
from data_prep.core.tally import Tally, merged, with_totals
from data_prep.deduplication.distinct import DistinctIds
from data_prep.documents.fields import DOCUMENT_FIELDS, Document, Fields, Named, Renames, defect
from data_prep.documents.listing import KNOWN, Files, list_files, matching, names_of
from data_prep.documents.reading import BadRecord, Part, document_files, read_documents, unread_files, write_part
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError, exit_on_user_error, nearest
from recipe.base.strict import Section, load_json, load_yaml, strict_model

PART_DOCUMENTS = 100  # of one id in a part: no chance
ENOUGH_IDS = 0.9  # different ones a document; files that each number from 0 have fewer
FEW_IDS = 1000  # documents are held out by a hash of their id; of fewer ids a share is a matter of chance


class Hub(Section):
    """Arguments of `datasets.load_dataset`."""

    path: str  # of a dataset, or a builder (json, parquet) with data_files
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | None = None


class SourceConfig(Section):
    """One source. Exactly one of `hub` and `files`."""

    hub: Hub | None = None
    files: str | None = None  # a path or glob, relative to the folder the command runs in
    lang: str
    license: str
    expected_tokens: float = Field(gt=0)  # of the source as it is published, in tokens of about 4.4 bytes
    tier: Literal[1, 2, 3]  # 1: best, more of it towards the end of training
    weight: float = Field(1.0, gt=0)  # beside temperature sampling
    # How the records join two languages; a label of the documents, for those that skip curate.py, which finds it anew.
    bilingual: Literal["parallel", "translation", "switched", "glossary"] | None = None
    records: int = Field(1, ge=1)  # in a row that make one document: pairs of sentences are none by themselves
    # Our name -> theirs, where they differ; a dot leads into a field (metadata.url). `id: null` numbers the records, as
    # does a record without an id unless `id` is named. Named, lang, source and license go before the entry's own.
    fields: Fields = Fields()

    @property
    def named_fields(self) -> dict[str, Named]:
        return self.fields.model_dump(exclude_unset=True)

    def problems(self) -> list[str]:
        return [] if (self.hub is None) != (self.files is None) else ["give exactly one of 'hub' and 'files'"]


class SourcesConfig(Section):
    sources: dict[str, SourceConfig]

    def problems(self) -> list[str]:
        return [f"sources.{name}: {p}" for name, source in self.sources.items() for p in source.problems()]


def load_sources(path: Path) -> dict[str, SourceConfig]:
    return strict_model(SourcesConfig, load_yaml(path), path).sources


def open_hub(hub: Hub) -> Any:
    """The streaming dataset.

    Raises:
        UserError: it does not exist, needs a token or a name, or cannot be reached.
    """
    import datasets

    try:
        return datasets.load_dataset(
            hub.path, hub.name, split=hub.split, revision=hub.revision, data_files=hub.data_files, streaming=True
        )
    except Exception as error:  # of datasets, huggingface_hub, fsspec, httpx, which share no class
        raise UserError(f"dataset {hub.path} cannot be opened ({_first_lines(error)}); {_advice(str(error))}") from None


def _advice(message: str) -> str:
    """What to do about a dataset that cannot be opened."""
    if re.search(r"gated|authenticat|40[13] |unauthorized|forbidden", message, re.IGNORECASE):
        return "accept its terms on its page, and log in with `hf auth login` or HF_TOKEN"
    if re.search(r"config", message, re.IGNORECASE):
        return "give hub.name, one of its configurations"
    if re.search(r"split", message, re.IGNORECASE):
        return "give hub.split, one of its splits"
    return "check its name and the network"


def _first_lines(error: Exception, most: int = 400) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."


def hub_documents(
    hub: Hub, shard: int, shards: int, fields: Mapping[str, Named], on_bad: Callable[[BadRecord], None]
) -> Iterator[Document]:
    """Documents of one shard of a hub dataset, with their own fields only; a row without an id is numbered."""
    renames = Renames(fields)
    for row, record in _hub_rows(hub, shard, shards):
        renames.apply(record)
        if record.get("id") is None and fields.get("id") is None:
            record["id"] = f"{shard:05d}/{row:09d}"
        reason = defect(record, renames)
        if reason is None:
            yield {name: record[name] for name in DOCUMENT_FIELDS if name in record}
        else:
            on_bad(BadRecord(f"shard {shard}", row + 1, reason, repr(record)[:200]))


def _hub_rows(hub: Hub, shard: int, shards: int) -> Iterator[tuple[int, dict[str, Any]]]:
    rows, row = iter(open_hub(hub).shard(num_shards=shards, index=shard, contiguous=True)), 0
    while True:
        try:
            record = next(rows, None)
        except Exception as error:  # the network's, a file's, or the dataset's own
            raise UserError(
                f"dataset {hub.path} shard {shard} cannot be read beyond row {row:,} ({_first_lines(error)}); run again "
                "to resume, or download its files and name them under 'files'"
            ) from None
        if record is None:
            return
        yield row, record
        row += 1


def joined_records(documents: Iterable[Document], records: int) -> Iterator[Document]:
    """Documents of so many records in a row, with an empty line between their texts and the labels of the first."""
    rest = iter(documents)
    while batch := list(islice(rest, records)):
        yield {**batch[0], "text": "\n\n".join(document["text"] for document in batch)} if records > 1 else batch[0]


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
    tally, ids, used = Tally(), DistinctIds(), Counter[str]()
    path = task.path if isinstance(task, Part) else Path(f"{source.hub.path if source.hub else name} shard {task[0]}")
    bad = BadRecords(path, number, output, max_bad)
    labels = {"lang": source.lang, "source": name, "license": source.license}
    known = labels if source.bilingual is None else {**labels, "bilingual": source.bilingual}
    # what the records say of labels that the entry gives is not looked at, unless it names their fields
    fields: dict[str, Named] = {**dict.fromkeys(labels), **source.named_fields}
    if isinstance(task, Part):
        documents = read_documents(task, bad, fields, number_ids="id" not in source.named_fields)
    else:
        assert source.hub is not None
        documents = hub_documents(source.hub, *task, fields, bad)
    first_id = None

    def labelled() -> Iterator[Document]:
        nonlocal first_id
        for document in islice(joined_records(documents, source.records), limit):
            first_id = first_id or document["id"]
            ids.add(document["id"])
            used.update(field for field in source.named_fields if field in document)
            document = {**known, **document}
            size = len(document["text"].encode())
            tally.add(document["lang"], document["source"], size, None, size)
            yield {**document, "id": f"{name}/{document['id']}"}

    written = write_part(output / "documents", number, labelled())
    bad.write()
    if written.documents >= PART_DOCUMENTS and ids.count() == 1:
        raise UserError(f"{path}: all {written.documents:,} documents have the id '{first_id}'; {_other_id(source)}")
    result = {"groups": tally.groups(), "ids": ids.dump(), "first_id": first_id, "fields": dict(used)}
    return {**result, "bad_records": len(bad), "files": written.below(output)}


def _other_id(source: SourceConfig) -> str:
    return f"name another field than '{source.fields.id or 'id'}' as fields.id of the source, or null to number the records"


def notes_of(source: SourceConfig, results: list[dict[str, Any]], documents: int, unread: list[Path]) -> list[str]:
    """What is to be known of a source that was brought in: too few ids, fields that no record has, files not read."""
    notes = []
    distinct = DistinctIds.merged(result["ids"] for result in results).count()
    if distinct < ENOUGH_IDS * documents or distinct < FEW_IDS < documents:
        example = next(result["first_id"] for result in results if result["first_id"])
        notes.append(
            f"the {documents:,} documents have only about {distinct:,} different ids in '{source.fields.id or 'id'}', such "
            f"as '{example}', and documents are held out by their ids; {_other_id(source)}"
        )
    used = {field for result in results for field, count in result["fields"].items() if count}
    for field, theirs in source.named_fields.items():
        if theirs is not None and field not in used:
            notes.append(
                f"no record has a value in '{theirs if isinstance(theirs, str) else ', '.join(theirs)}', which fields.{field} names; correct it or leave it out"
            )
    if unread:
        notes.append(
            f"not read, since they are not documents or are links to files that are read: {len(unread):,} files, {names_of(unread)}"
        )
    return notes


def files_of(source: SourceConfig) -> Files:
    """The local files of a source, and those that are not read; none of a hub dataset."""
    if source.files is None:
        return Files([], [])
    if os.path.lexists(source.files):  # whatever characters it has, it is no glob
        return Files(document_files(source.files, option="files"), unread_files(source.files))
    matches = matching(source.files)
    if not matches:
        raise UserError(f"files {source.files} match nothing; correct the path or glob, or fetch them")
    files = list_files(matches)
    if not files.documents:
        raise UserError(f"files {source.files} match no {KNOWN} file, only {names_of(files.unread)}; correct the glob")
    return files


def shards_of(hub: Hub) -> list[tuple[int, int]]:
    """The shards of a hub dataset, each with their number."""
    shards = open_hub(hub).num_shards
    return [(shard, shards) for shard in range(shards)]


def _root(pattern: str) -> Path:
    """The folder above all that a glob matches: of its steps, those before the first with a wildcard."""
    path = Path(pattern)
    if os.path.lexists(path):
        return path if path.is_dir() else path.parent
    steps = list(takewhile(lambda step: not glob.has_magic(step), path.parts[:-1]))
    return Path(*steps)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(
        __doc__,
        "python data_prep/ingest.py --source fineweb-edu --output raw/fineweb-edu --limit 1000",
        "sources.yaml",
        reads_input=False,
    )
    parser.add_argument("--source", required=True, help="name of a source in the config")
    parser.add_argument(
        "--limit", type=positive_int, help="for a trial: at most so many documents of each file or shard"
    )
    args = parser.parse_args(argv)
    sources = load_sources(args.config)
    if args.source not in sources:
        raise UserError(f"--source {args.source} is not in {args.config}{nearest(args.source, sources)}")
    source = sources[args.source]
    parameters = {"name": args.source, "limit": args.limit, **source.model_dump(mode="json")}
    files = files_of(source)
    root = _root(source.files) if source.files else None
    stage = Stage.of("ingest", args, parameters, files=files.documents, root=root)
    if not stage.finished:
        task = partial(
            ingest_task, name=args.source, source=source, limit=args.limit, output=stage.output, max_bad=stage.max_bad
        )
        results = stage.run_tasks("documents", task, stage.parts if source.hub is None else shards_of(source.hub))
        counts = with_totals(merged(result["groups"] for result in results))
        stage.must_have_documents(counts["in"], of=f"--source {args.source}")
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        notes = notes_of(source, results, counts["in"], files.unread)
        distinct = DistinctIds.merged(result["ids"] for result in results).count()
        stage.finish(counts=counts, written=results, results={"distinct_ids": distinct, "notes": notes})
    stage.report("brought in")
    for note in load_json(stage.output / "manifest.json")["results"].get("notes", ()):
        print(f"  note: {note}")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
