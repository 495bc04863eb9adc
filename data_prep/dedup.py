#!/usr/bin/env python3
"""Remove documents with the same or almost the same text; of each cluster of duplicates the best document stays.

Which document stays depends on the documents alone, not on the number of workers or files. With --against, documents that an
earlier run kept stay, and their duplicates in --input are removed.
"""

# The phases, as progress names them:
#   signatures   each part of the input: hashes, MinHash signature and rank of every document
#   candidates   each range of band keys: pairs of documents that share a band
#   compared     each pair, at the parts of its documents: by their signatures
#   components   duplicates of duplicates are duplicates: clusters, by connected components
#   clusters     each range of clusters: which document stays
#   lines        optional: lines that many documents have
#   anchors      optional, up to `spans`: where documents may have long spans in common
#   shared       each range of anchors: those that come several times
#   windows      each part: the text around them, as hashes of all its windows
#   repeated_windows  each range of windows: all but the first of each
#   spans        each range of documents: the spans that these cover
#   survivors    each part: the documents that stay, as they came
# No phase needs more memory than one part or one range takes. But rows of one key are of one range: some GB go with tens of
# millions of documents that share a band, are equal, or are one cluster.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field

from data_prep.core.command import job_parser
from data_prep.core.shuffle import Shuffle, column, grouped
from data_prep.core.stage import Stage, for_documents
from data_prep.core.tally import Tally, merged, with_totals
from data_prep.curation.repeated_lines import LineFilter, RepeatedLines, count_lines, find_repeated, join_repeated
from data_prep.deduplication.clusters import REASONS, choose, members, rank
from data_prep.deduplication.components import find_components
from data_prep.deduplication.cuts import SpanFilter
from data_prep.deduplication.links import candidates, compare, sign_left, spread_bands
from data_prep.deduplication.signatures import DROPS_FILES, Catalog, Ranking, sign_part
from data_prep.deduplication.spans import RepeatedSpans, find_spans
from data_prep.documents.reading import Document, Part, records, write_part
from recipe.base.errors import UserError, exit_on_user_error, nearest
from recipe.base.strict import Section, load_json, load_yaml, strict_model

_EXAMPLES = 5  # of ids that several documents have


class DedupConfig(Section):
    ngram: int = Field(5, gt=0)
    bands: int = Field(32, gt=0)
    rows: int = Field(8, gt=0)
    threshold: float = Field(0.7, gt=0, le=1)
    seed: int = Field(1, ge=0)
    priority: list[str] = []
    quality_field: str = "quality"
    repeated_lines: RepeatedLines | None = None
    repeated_spans: RepeatedSpans | None = None

    @property
    def minhash(self) -> tuple[int, int, int, int]:
        return self.ngram, self.bands, self.rows, self.seed


def dropped_of(number: int, catalog: Catalog) -> tuple[pa.Table, np.ndarray]:
    """Labels of one part's documents in the order of their records, and each one's fate.

    Returns:
        table of record, lang, source, bytes, id; int8 [N]: -1 stays, 0 near duplicate, 1 exact duplicate.
    """
    labels = pa.concat_tables(
        [table.select(("record", "lang", "source", "bytes", "id")) for table in catalog.part(number)]
    )
    fate = np.full(labels.num_rows, -1, np.int8)
    gone = catalog.drops(number)
    fate[np.searchsorted(column(labels, "record"), column(gone, "record"))] = column(gone, "exact")
    return labels, fate


Spans = tuple[RepeatedSpans, Shuffle]  # with where they are


def write_survivors(
    part: Part, number: int, *, catalog: Catalog, output: Path, lines: LineFilter | None, spans: Spans | None
) -> dict[str, Any]:
    """Copy one part without the documents that go; records without usable text were set aside before."""
    labels, fate = dropped_of(number, catalog)
    kept = iter(column(labels, "record")[fate < 0].tolist())
    changed = Counter({"lines": 0, "documents": 0})
    cut = Counter({"spans": 0, "characters": 0, "documents": 0, "dropped": 0})
    span_filter = None if spans is None else SpanFilter(*spans, number)

    def survivors() -> Iterator[Document | bytes]:
        following = next(kept, None)
        for place, raw in enumerate(records(part)):
            if place == following:
                following = next(kept, None)
                document = raw if span_filter is None else span_filter.apply(place, raw, cut)
                cut["dropped"] += document is None
                if document is not None and lines is not None:
                    document = lines.apply(document, changed)
                if document is not None:
                    yield document

    written = write_part(output / "documents", number, survivors())
    return {
        "groups": _groups(labels, fate),
        "written": written.documents,
        "repeated_lines": dict(changed),
        "repeated_spans": dict(cut),
        "files": written.below(output),
    }


def _groups(labels: pa.Table, fate: np.ndarray) -> dict[str, Any]:
    """Documents and bytes of one part by language, source and fate, as `Tally` counts them."""
    tally = Tally()
    table = labels.append_column("fate", pa.array(fate)).group_by(["lang", "source", "fate"])
    for row in table.aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
        reason = None if row["fate"] < 0 else REASONS[row["fate"]]
        tally.add(row["lang"], row["source"], row["bytes_sum"], reason, row["bytes_sum"], row["bytes_count"])
    return tally.groups()


def repeated_ids(partition: int, number: int, *, source: Shuffle, partitions: int) -> dict[str, Any]:
    """How many documents that stay carry an id that another one has, and a few of those ids.

    One id may be that of any number of documents: what is carried from table to table is the last one's count.
    """
    examples: list[str] = []
    repeated = 0
    last, carried = None, 0  # the key that the tables so far end with, and its documents
    for table in source.tables(partition, partitions):
        key = column(table, "key")
        if key.size == 0:
            continue
        starts, ends = grouped(key)
        sizes = ends - starts
        before = carried if key[0] == last else 0
        totals = sizes.copy()
        totals[0] += before
        # of the first, those that were counted with the tables before are not counted again
        repeated += int(totals[totals > 1].sum()) - (before if before > 1 else 0)
        new = totals > 1
        new[0] &= before < 2
        examples += table["id"].take(pa.array(starts[new][: _EXAMPLES - len(examples)])).to_pylist()
        last, carried = key[-1], int(totals[-1])
    return {"repeated": repeated, "examples": sorted(examples)}


def spread_ids(number: int, task: int, *, catalog: Catalog, target: Shuffle) -> dict[str, Any]:
    """The ids of one part's surviving documents."""
    labels, fate = dropped_of(number, catalog)
    ids = labels["id"].filter(pa.array(fate < 0)).combine_chunks()
    keys = np.fromiter((xxhash.xxh3_64_intdigest(i.encode()) for i in ids.to_pylist()), np.uint64, len(ids))
    target.write(task, keys, {"id": ids})
    return {}


def older_runs(folders: list[Path], config: DedupConfig) -> tuple[Path, ...]:
    """Checks that the signatures of older runs can be compared with ours."""
    for folder in folders:
        manifest = folder / "manifest.json"
        if not manifest.exists() or load_json(manifest)["stage"] != "dedup":
            raise UserError(f"--against {folder} is not the output of a finished dedup.py; give one that is")
        theirs = load_json(manifest)["parameters"]
        different = [key for key in ("ngram", "bands", "rows", "seed") if theirs[key] != getattr(config, key)]
        if different:
            raise UserError(
                f"--against {folder} was signed with other {', '.join(different)}; give the same in --config or sign it again"
            )
    return tuple(folders)


def find_duplicates(stage: Stage, config: DedupConfig, older: tuple[Path, ...]) -> tuple[Catalog, dict[str, Any]]:
    """The phases up to which documents go. Returns the catalog and the clusters by size."""
    run, shuffle = stage.run_tasks, stage.shuffle
    catalog = Catalog(stage.output, older)
    numbers = catalog.numbers()
    bands, exact, edges = shuffle("bands"), shuffle("exact"), shuffle("edges")
    spread = partial(spread_bands, catalog=catalog, minhash=config.minhash, bands=bands, exact=exact)
    run("bands", spread, numbers)
    bands.merge(run)
    exact.merge(run)
    link_documents(stage, config, catalog, bands, exact, edges)
    found, parts = find_components(run, edges, shuffle)
    clustered, ranked = shuffle("members"), shuffle("ranked")
    run("members", partial(members, found=found, partitions=parts, target=clustered), list(range(parts)))
    clustered.merge(run)
    parts = clustered.partitions()
    run("ranked", partial(rank, source=clustered, partitions=parts, catalog=catalog, target=ranked), list(range(parts)))
    ranked.merge(run)
    drops, parts = Shuffle(stage.output / "drops"), ranked.partitions()
    choice = partial(choose, source=ranked, partitions=parts, drops=drops, output=stage.output)
    chosen = run("clusters", choice, list(range(parts)))
    drops.merge(run, DROPS_FILES)
    return catalog, merged(result["clusters"] for result in chosen)


def link_documents(
    stage: Stage, config: DedupConfig, catalog: Catalog, bands: Shuffle, exact: Shuffle, edges: Shuffle
) -> None:
    """The phases from documents that meet to edges between duplicates."""
    run, pairs, signed = stage.run_tasks, stage.shuffle("pairs"), stage.shuffle("signed")
    ranges = [
        (kind, i, n) for kind, n in (("exact", exact.partitions()), ("bands", bands.partitions())) for i in range(n)
    ]
    run("candidates", partial(candidates, bands=bands, exact=exact, pairs=pairs, edges=edges), ranges)
    pairs.merge(run)
    parts = pairs.partitions()
    sign = partial(sign_left, source=pairs, partitions=parts, catalog=catalog, target=signed)
    run("signed", sign, list(range(parts)))
    signed.merge(run)
    parts = signed.partitions()
    check = partial(
        compare, source=signed, partitions=parts, catalog=catalog, threshold=config.threshold, edges=edges,
        first=len(ranges),
    )  # fmt: skip
    run("compared", check, list(range(parts)))
    edges.merge(run)


def find_repeated_lines(stage: Stage, config: RepeatedLines, catalog: Catalog) -> LineFilter:
    counted, ranges = stage.shuffle("lines"), stage.shuffle("repeated").folder
    joined = stage.output / "repeated_lines" / "00000.npy"
    count = partial(count_lines, config=config, target=counted, fate=partial(dropped_of, catalog=catalog))
    stage.run_tasks("lines", count, stage.parts)
    counted.merge(stage.run_tasks)
    parts = counted.partitions()
    find = partial(find_repeated, config=config, source=counted, partitions=parts, target=ranges)
    stage.run_tasks("repeated", find, list(range(parts)))
    stage.run_tasks("repeated_lines", partial(join_repeated, source=ranges, target=joined), [parts])
    return LineFilter(joined)


def find_repeated_spans(stage: Stage, config: RepeatedSpans, catalog: Catalog) -> Spans:
    fate = partial(dropped_of, catalog=catalog)
    return config, find_spans(stage.run_tasks, stage.shuffle, stage.parts, config, fate)


def notes_on_ranking(config: DedupConfig, signed: list[dict[str, Any]], sources: set[str]) -> list[str]:
    """What of the ranking had no effect, or not the one that was meant."""
    unknown = [name for name in config.priority if name not in sources]
    notes = [f"no document has the source '{name}' of priority{nearest(name, sources)}" for name in unknown]
    field, unranked = config.quality_field, sum(result["unranked"] for result in signed)
    if unranked:
        notes.append(f"documents whose '{field}' is no finite number: {unranked:,}; they rank as with 0")
    default = DedupConfig.model_fields["quality_field"].default
    if field != default and not unranked and not any(result["ranked"] for result in signed):
        notes.append(f"no document has the quality_field '{field}'; the longest of a cluster stayed")
    return notes


def finish(
    stage: Stage,
    config: DedupConfig,
    signed: list[dict[str, Any]],
    survivors: list[dict[str, Any]],
    clusters: dict[str, int],
    repeated: list[dict[str, Any]],
) -> None:
    counts = with_totals(merged(result["groups"] for result in survivors))
    counts["repeated_lines"] = merged(result["repeated_lines"] for result in survivors)
    counts["repeated_spans"] = merged(result["repeated_spans"] for result in survivors)
    cut = counts["repeated_spans"].pop("dropped")
    # a document whose every line is repeated is none any more
    empty = counts["out"] - cut - sum(result["written"] for result in survivors)
    for reason, number in (("repeated_spans", cut), ("repeated_lines", empty)):
        if number:
            counts["out"] -= number
            counts["dropped"][reason] = number
    counts["clusters"] = sum(clusters.values())
    counts["clusters_by_size"] = dict(sorted(clusters.items(), key=lambda item: int(item[0])))
    counts["bad_records"] = sum(result["bad_records"] for result in signed)
    counts["repeated_ids"] = sum(r["repeated"] for r in repeated)
    examples = sorted(i for r in repeated for i in r["examples"])[:_EXAMPLES]
    sources = {source for groups in counts["groups"].values() for source in groups}
    results = {"repeated_ids": examples, "notes": notes_on_ranking(config, signed, sources)}
    stage.finish(counts=counts, written=survivors, results=results)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(__doc__, "python data_prep/dedup.py --input work/curated --output work/deduped", "dedup.yaml")
    parser.add_argument(
        "--against", type=Path, action="append", default=[], metavar="DIR",
        help="output folder of an earlier dedup.py, whose documents stay; may be repeated",
    )  # fmt: skip
    args = parser.parse_args(argv)
    config = strict_model(DedupConfig, load_yaml(args.config), args.config)
    older = older_runs(args.against, config)
    against = [load_json(folder / "manifest.json")["files"] for folder in older]
    stage = Stage.of("dedup", args, {**config.model_dump(mode="json"), "against": against})
    if not stage.finished:
        ranking = Ranking(tuple(config.priority), config.quality_field)
        sign = partial(sign_part, minhash=config.minhash, ranking=ranking, output=stage.output)
        signed = stage.run_tasks("signatures", for_documents(stage, work=sign, numbered=True), stage.parts)
        stage.must_have_documents(sum(result["documents"] for result in signed))
        catalog, clusters = find_duplicates(stage, config, older)
        lines = find_repeated_lines(stage, config.repeated_lines, catalog) if config.repeated_lines else None
        spans = find_repeated_spans(stage, config.repeated_spans, catalog) if config.repeated_spans else None
        ids = stage.shuffle("ids")
        stage.run_tasks("ids", partial(spread_ids, catalog=catalog, target=ids), range(len(stage.parts)))
        ids.merge(stage.run_tasks)
        parts = ids.partitions()
        repeated = stage.run_tasks(
            "repeated_ids", partial(repeated_ids, source=ids, partitions=parts), list(range(parts))
        )
        survive = partial(write_survivors, catalog=catalog, output=stage.output, lines=lines, spans=spans)
        survivors = stage.run_tasks("survivors", survive, stage.parts)
        finish(stage, config, signed, survivors, clusters, repeated)
    stage.report("kept")
    manifest = load_json(stage.output / "manifest.json")
    for note in manifest["results"].get("notes", []):
        print(f"  note: {note}")
    repeated_count = manifest["counts"]["repeated_ids"]
    if repeated_count:
        print(
            f"  note: {repeated_count:,} kept documents have the id of another kept document with other text; "
            f"{stage.output / 'manifest.json'} names some of these ids (results.repeated_ids)"
        )
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
