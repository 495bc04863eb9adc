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
    curator, tally = Curator(config), Tally()
    numbers: dict[str, Any] = {
        "lines_dropped": Counter(),
        "sentences_dropped": Counter(),
        "marks_widened": Counter(),
        "masked": {},
        "bilingual": {},  # language -> label -> documents and bytes that are kept
        "confidence": {},
        "log2_characters": {},
    }
    dropped: list[Document] = []
    samples: Counter[str] = Counter()

    def kept() -> Iterator[Document]:
        for raw in documents:
            document, reason, confidence, lines, masked, sentences, widened = curator.judge(raw, source)
            language, text_bytes = document["lang"], len(raw["text"].encode())
            tally.add(
                language,
                document["source"],
                text_bytes,
                reason,
                len(document["text"].encode()) if reason is None else 0,
            )
            numbers["confidence"].setdefault(language, Counter())[f"{int(confidence * 20) / 20:.2f}"] += 1
            if reason is None:
                numbers["log2_characters"].setdefault(language, Counter())[str(len(document["text"]).bit_length())] += 1
                numbers["lines_dropped"][language] += lines
                numbers["sentences_dropped"][language] += sentences
                numbers["marks_widened"][language] += widened
                numbers["masked"].setdefault(language, Counter()).update(masked)
                if label := document.get("bilingual"):
                    labels = numbers["bilingual"].setdefault(language, {})
                    labels.setdefault(label, Counter()).update(documents=1, bytes=len(document["text"].encode()))
                yield document
            else:
                samples[reason] += 1
                if config.dropped_samples is None or samples[reason] <= config.dropped_samples:
                    dropped.append({**document, "dropped": reason})

    written = write_part(output / "documents", number, kept())
    write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", dropped)
    return {"groups": tally.groups(), "numbers": numbers, "files": written.below(output)}


def curate_part(part: Part, number: int, *, config: CurateConfig, output: Path, max_bad: int) -> dict[str, Any]:
    work = partial(curate_documents, config=config, output=output, source=part.path.name.split(".")[0])
    return document_task(part, number, work=work, output=output, max_bad=max_bad, fields=config.fields.model_dump())


def bilingual_lines(results: dict[str, Any]) -> Iterator[str]:
    """A line for each language that says how many of its documents join two languages, and how."""
    for language, labels in results.get("bilingual", {}).items():  # a folder that an older version finished has none
        documents, size = (sum(numbers[name] for numbers in labels.values()) for name in ("documents", "bytes"))
        how = ", ".join(f"{label} {numbers['documents']:,}" for label, numbers in labels.items())
        yield f"bilingual {documents:>7,}  mostly in {language}, {size / 1e6:.1f} MB: {how}"


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
