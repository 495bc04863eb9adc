#!/usr/bin/env python3
"""Curate raw documents: repair the text, detect the language, drop what the quality rules refuse, mask personal data.

Samples of the dropped documents, each with its reason, are written to dropped/ in the output folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.core.command import job_parser
from data_prep.core.stage import Stage, document_task
from data_prep.core.tally import Tally, merged, with_totals
from data_prep.curation.changes import Numbers, bilingual_lines
from data_prep.curation.coverage import language_warnings
from data_prep.curation.curator import Curator
from data_prep.curation.settings import CurateConfig, load_curate_config
from data_prep.documents.reading import Document, Part, write_documents, write_part
from recipe.base.errors import exit_on_user_error
from recipe.base.strict import load_json


def curate_documents(
    documents: Iterable[Document], number: int, *, config: CurateConfig, output: Path, source: str
) -> dict[str, Any]:
    """Judge one part's documents; write the kept, and samples of the dropped with their reason."""
    curator, tally, numbers = Curator(config), Tally(), Numbers()
    dropped: list[Document] = []
    samples: Counter[str] = Counter()

    def kept() -> Iterator[Document]:
        for raw in documents:
            verdict = curator.judge(raw, source)
            document, reason = verdict.document, verdict.reason
            written_bytes = len(document["text"].encode()) if reason is None else 0
            tally.add(document["lang"], document["source"], len(raw["text"].encode()), reason, written_bytes)
            numbers.add(verdict)
            if reason is None:
                yield document
            else:
                samples[reason] += 1
                if config.dropped_samples is None or samples[reason] <= config.dropped_samples:
                    dropped.append({**document, "dropped": reason})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", dropped)
    return {"groups": tally.groups(), "numbers": numbers.values(), "files": written.below(output)}


def curate_part(part: Part, number: int, *, config: CurateConfig, output: Path, max_bad: int) -> dict[str, Any]:
    work = partial(curate_documents, config=config, output=output, source=part.path.name.split(".")[0])
    return document_task(part, number, work=work, output=output, max_bad=max_bad, fields=config.fields.model_dump())


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(__doc__, "python data_prep/curate.py --input raw/ --output work/curated", "curate.yaml")
    args = parser.parse_args(argv)
    config = load_curate_config(args.config)
    Curator(config)  # what the config names can be loaded
    stage = Stage.of("curate", args, config.parameters())
    if not stage.finished:
        task = partial(curate_part, config=config, output=stage.output, max_bad=stage.max_bad)
        results = stage.run_tasks("curate", task, stage.parts)
        counts = with_totals(merged(result["groups"] for result in results))
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        stage.must_have_documents(counts["in"])
        warnings = language_warnings(config.languages, counts["groups"], stage.parameters)
        numbers = merged(result["numbers"] for result in results)
        stage.finish(counts=counts, written=results, results={**numbers, "warnings": warnings})
    stage.report("kept")
    results = load_json(stage.output / "manifest.json")["results"]
    for line in bilingual_lines(results):
        print(f"  {line}")
    for warning in results["warnings"]:
        print(f"warning: {warning}")
    stage.tell_next()


if __name__ == "__main__":
    raise SystemExit(main())
