#!/usr/bin/env python3
"""Curate raw documents: normalise, identify the language, drop what the quality rules refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_prep.command import job_parser
from data_prep.documents import Document, write_documents
from data_prep.language import detect_script, normalize
from data_prep.rules import Thresholds, reason_to_drop
from data_prep.stage import Stage, for_documents, merged_counts
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import load_yaml, strict_model


class Fields(BaseModel):
    """Our name of a field -> its name in the input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = "id"
    text: str = "text"
    lang: str = "lang"
    source: str = "source"


class CurateConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: Fields = Fields()
    keep_dropped: bool = True
    languages: dict[str, Thresholds]

    def problems(self) -> list[str]:
        scripts = Counter(limits.script for limits in self.languages.values())
        return [
            f"languages has {n} of script '{script}', which the detection by script cannot tell apart; keep one"
            for script, n in scripts.items()
            if n > 1
        ] + ([] if self.languages else ["languages is empty; name at least one"])


def judge(document: Document, config: CurateConfig, default_source: str) -> tuple[Document, str | None]:
    """The document normalised and labelled, and the reason to drop it (None: keep).

    The language is the detected one. A document that claims another of the configured languages is dropped:
    one of the two is wrong. Labels that the configuration does not know (zh-Hans, cmn_Hani) are replaced.
    """
    document = {**document, "text": normalize(document["text"])}
    document["source"] = str(document.get("source") or default_source)
    script = detect_script(document["text"])
    language = next((name for name, limits in config.languages.items() if limits.script == script), None)
    claimed = document.get("lang")
    document["lang"] = language or claimed or "unknown"
    if language is None:
        return document, "other_language"
    if claimed in config.languages and claimed != language:
        return document, "language_mismatch"
    return document, reason_to_drop(document["text"], config.languages[language])


def curate_file(
    documents: Iterable[Document], number: int, *, config: CurateConfig, output: Path, source: str
) -> dict[str, Any]:
    """Judge one file's documents; write the kept and, if asked, the dropped with their reason."""
    counts: dict[str, Any] = {"in": 0, "out": 0, "dropped": Counter(), "by_language": {}, "by_source": {}}
    dropped: list[Document] = []

    def kept():
        for document in documents:
            document, reason = judge(document, config, source)
            counts["in"] += 1
            for kind, name in (("by_language", document["lang"]), ("by_source", document["source"])):
                tally = counts[kind].setdefault(name, {"in": 0, "out": 0, "dropped": Counter()})
                tally["in"] += 1
                tally["out"] += reason is None
                if reason is not None:
                    tally["dropped"][reason] += 1
            if reason is None:
                counts["out"] += 1
                yield document
            else:
                counts["dropped"][reason] += 1
                if config.keep_dropped:
                    dropped.append({**document, "dropped": reason})

    write_documents(output / "documents" / f"{number:05d}.jsonl.zst", kept())
    if config.keep_dropped:
        write_documents(output / "dropped" / f"{number:05d}.jsonl.zst", dropped)
    return {"counts": counts}


def curate_task(file, number: int, *, stage_task: Any, config: CurateConfig, output: Path) -> dict[str, Any]:
    source = file.path.name.split(".")[0]
    return stage_task(file, number, work=partial(curate_file, config=config, output=output, source=source))


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = job_parser(__doc__, "python data_prep/curate.py --input raw/ --output work/curated", "curate.yaml")
    args = parser.parse_args(argv)
    config = strict_model(CurateConfig, load_yaml(args.config), args.config)
    stage = Stage("curate", args.input, args.output, config.model_dump(mode="json"), args.max_bad)
    if not stage.finished:
        task = partial(
            curate_task,
            stage_task=for_documents(stage, fields=config.fields.model_dump()),
            config=config,
            output=stage.output,
        )
        results = stage.run_tasks("curate", task, stage.inputs, args.workers)
        counts = merged_counts(results, "counts")
        counts["bad_records"] = sum(result["bad_records"] for result in results)
        if counts["in"] == 0:
            raise UserError(f"--input {args.input} holds no documents; give files with at least one")
        files = sorted((stage.output / "documents").iterdir())
        stage.finish(counts=counts, files=files)
    stage.report()


if __name__ == "__main__":
    raise SystemExit(main())
