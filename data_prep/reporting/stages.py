"""Finished stages as the data report shows them: what their manifests, folders and dropped documents say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.core.reasons import sentence
from data_prep.core.stage import VERSION
from data_prep.core.tally import by, merged
from data_prep.documents.reading import document_files, read_documents
from recipe.base.errors import UserError
from recipe.base.files import sha256
from recipe.base.strict import load_json
from recipe.data.token_folder import TOKEN_STAGES

SAMPLES, SAMPLE_CHARACTERS = 3, 600  # of each reason, and of each sample's text
MOST_LOOKED_AT = 100_000  # dropped documents that are read for samples
MOST_KEPT_LOOKED_AT = 2_000  # documents that stay, likewise: there are far more of them
OTHERS = "other languages"  # that do not stay, or have no colour of their own
DUPLICATES = ("exact_duplicate", "near_duplicate")
MASKED = {"email": "e-mail addresses", "phone": "phone numbers", "identity": "identity numbers", "ip": "IP addresses"}


@dataclass(frozen=True)
class Reason:
    """Why documents were dropped, and how many."""

    name: str
    sentence: str
    documents: int
    bytes: int | None  # of text; None where the stage does not count it
    by_language: dict[str, int]  # documents


def _sample(document: dict[str, Any]) -> dict[str, str]:
    return {"id": document["id"], "text": document["text"][:SAMPLE_CHARACTERS]}


def _what_it_is(document: dict[str, Any]) -> str:
    """The language, and the kind of text where curation has named one: `zh`, `zh, verse`, `en, bilingual (parallel)`."""
    bilingual = document.get("bilingual")
    kind = f"bilingual ({bilingual})" if bilingual else document.get("kind")
    return ", ".join(str(name) for name in (document.get("lang", "unknown"), kind) if name)


@dataclass(frozen=True)
class FinishedStage:
    """One finished data job."""

    name: str
    folder: Path
    finished: datetime  # when its manifest was written
    checksum: str  # of its manifest
    parent: str | None  # checksum of the manifest of the stage that it read
    parameters: dict[str, Any]
    counts: dict[str, Any]
    results: dict[str, Any]

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """language -> source -> counts; empty for a stage that does not count so."""
        return self.counts.get("groups", {})

    @property
    def totals(self) -> dict[str, dict[str, Any]]:
        """split -> source -> documents, tokens and text bytes of a stage that writes tokens."""
        return self.counts.get("totals", {})

    @property
    def reasons(self) -> list[Reason]:
        """The reasons that dropped any document, the most frequent first."""
        languages = by(self.groups, "language")
        sizes = self.counts.get("bytes_dropped", {})
        rows = []
        for name, documents in self.counts.get("dropped", {}).items():
            if documents:
                hit = {lang: n for lang, group in languages.items() if (n := group["dropped"].get(name, 0))}
                text = sentence(name, self.parameters, hit)
                rows.append(Reason(name, text, documents, sizes.get(name), hit))
        return sorted(rows, key=lambda reason: (-reason.documents, reason.name))

    def samples(self) -> dict[str, list[dict[str, str]]]:
        """The first dropped documents of each reason, cut; reasons that the first files lack may have none."""
        missing = {reason.name: min(SAMPLES, reason.documents) for reason in self.reasons}
        by_reason: dict[str, list[dict[str, str]]] = {name: [] for name in missing}
        for document in islice(self._documents("dropped"), MOST_LOOKED_AT):
            if missing.get(name := document["dropped"]):
                missing[name] -= 1
                by_reason[name].append(_sample(document))
            if not any(missing.values()):
                break
        return {name: samples for name, samples in by_reason.items() if samples}

    def kept_samples(self) -> dict[str, list[dict[str, str]]]:
        """The first documents that stay, cut, by language and what they are; none of a stage that judges no text."""
        by_name: dict[str, list[dict[str, str]]] = {}
        if "languages" in self.parameters:
            for document in islice(self._documents("documents"), MOST_KEPT_LOOKED_AT):
                samples = by_name.setdefault(_what_it_is(document), [])
                if len(samples) < SAMPLES:
                    samples.append(_sample(document))
        return dict(sorted(by_name.items()))

    def _documents(self, name: str) -> Iterator[dict[str, Any]]:
        folder = self.folder / name
        for path in document_files(folder) if folder.is_dir() else ():
            yield from read_documents(path, lambda bad: None)


def read_stage(folder: Path) -> FinishedStage:
    """A finished stage by its manifest.

    Raises:
        UserError: the folder is not the output of a finished data job, or that of another version.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise UserError(f"stage {folder} does not exist; give the output folders of finished data jobs")
    if not path.exists():
        begun = (folder / "stage.json").exists()
        remedy = "run that job again to its end" if begun else "give the output folders of finished data jobs"
        raise UserError(f"stage {folder} has no manifest.json; {remedy}")
    manifest = load_json(path)
    if not isinstance(manifest, dict) or not {"stage", "counts", "results"} <= set(manifest):
        raise UserError(f"{path} is not the manifest of a data job; give the output folders of finished data jobs")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path} was written by another version of the data jobs (its format is {manifest.get('version')}, not {VERSION}); "
            "run that job again with another --output"
        )
    return FinishedStage(
        name=manifest["stage"],
        folder=folder,
        finished=datetime.fromtimestamp(path.stat().st_mtime, timezone.utc),
        checksum=sha256(path),
        parent=(manifest.get("parent") or {}).get("manifest_sha256"),
        parameters=manifest.get("parameters", {}),
        counts=manifest["counts"],
        results=manifest["results"],
    )


def in_order(stages: Iterable[FinishedStage]) -> list[FinishedStage]:
    """Each after the stage that it read, otherwise as given; tokens, where documents end, after all that read documents."""
    waiting, ordered = list(stages), list[FinishedStage]()
    while waiting:
        open_ = {stage.checksum for stage in waiting}
        ready = [stage for stage in waiting if stage.parent not in open_] or waiting
        following = min(ready, key=lambda stage: stage.name in TOKEN_STAGES)
        waiting.remove(following)
        ordered.append(following)
    return ordered


def languages_of(stages: Iterable[FinishedStage]) -> list[str]:
    """The languages that stay, those with the most text first; all of them where none does."""
    sizes: dict[str, int] = {}
    gone: dict[str, int] = {}
    for stage in stages:
        for lang, group in by(stage.groups, "language").items():
            totals = sizes if group["out"] else gone
            totals[lang] = max(totals.get(lang, 0), group["bytes_in"])
        for lang, size in {**read_by_language(stage), **text_of_tokens(stage, sizes)}.items():
            sizes[lang] = max(sizes.get(lang, 0), size)
    sizes = sizes or gone
    return sorted(sizes, key=lambda lang: (-sizes[lang], lang))


def read_by_language(stage: FinishedStage) -> dict[str, int]:
    """Bytes of text that a stage without groups says to have read: a tokenizer's training or its evaluation."""
    if "fertility" in stage.results:
        first: dict[str, Any] = next(iter(stage.results["fertility"].values()), {})
        return {lang: merged(sources.values())["bytes"] for lang, sources in first.items()}
    return dict(stage.counts.get("bytes", {}))


def language_of_series(series: str, languages: Iterable[str]) -> str | None:
    """The language that a series of shards is named after, alone or before its source; None for another name."""
    named = [lang for lang in languages if series == lang or series.startswith(f"{lang}-")]
    return max(named, key=len, default=None)


def tokens_by_language(stage: FinishedStage, languages: Iterable[str]) -> dict[str, dict[str, dict[str, int]]]:
    """language -> split -> documents, tokens and text bytes of a stage that writes tokens."""
    known = list(languages)
    by_source = stage.parameters.get("source_by", "source") == "source"
    by_language: dict[str, dict[str, Any]] = {}
    for split, sources in stage.totals.items():
        for series, numbers in sources.items():
            lang = language_of_series(series, known) or (series if by_source else series.split("-")[0])
            splits = by_language.setdefault(lang, {})
            splits[split] = merged([splits.get(split, {}), numbers])
    return by_language


def unit_of(stage: FinishedStage) -> str:
    """What the amount of a stage that writes tokens is counted in: bytes of text, or tokens where it has read no text."""
    of_training = stage.totals.get("train", {}).values()
    return "tokens" if of_training and not any(n["text_bytes"] for n in of_training) else "text_bytes"


def text_of_tokens(stage: FinishedStage, languages: Iterable[str]) -> dict[str, int]:
    """Bytes of text by language of a stage that writes tokens; its tokens where it has read no text."""
    splits = tokens_by_language(stage, languages)
    unit = unit_of(stage)
    return {lang: sum(numbers[unit] for numbers in of.values()) for lang, of in splits.items()}


PURPOSES = {
    "ingest": "brings a source into documents",
    "curate": "repairs text, detects the language, drops what the rules refuse, masks personal data",
    "dedup": "removes documents with the same or almost the same text; one of each cluster stays",
    "decontaminate": "removes documents that contain parts of evaluation sets",
    "train_tokenizer": "learns a vocabulary from the documents",
    "evaluate_tokenizer": "measures how many tokens a tokenizer needs for the documents",
    "tokenize": "turns documents into shards of tokens, for training and held out for evaluation",
    "import_shards": "turns token shards of other tools into shards of this one",
    "pack_sequences": "puts documents into an order that keeps them whole in sequences of one length",
}


def split_name(split: str) -> str:
    return {"train": "training", "held_out": "held out"}.get(split, split)


def table_rows(filters: list[FinishedStage]) -> list[dict[str, Any]]:
    """A row of each language and source: what came in and what is left of it after every stage that filters.

    Languages of which nothing stays share one row a source.
    """
    languages = by(filters[-1].groups, "language") if filters else {}
    stays = {lang for lang, group in languages.items() if group["out"]}
    rows: dict[tuple[str, str], list[dict[str, int]]] = {}
    for number, stage in enumerate(filters):
        for lang, sources in stage.groups.items():
            for source, group in sources.items():
                cells = rows.setdefault(
                    (lang if lang in stays else OTHERS, source),
                    [{"documents": 0, "bytes": 0} for _ in range(len(filters) + 1)],
                )
                if number == 0:
                    cells[0]["documents"] += group["in"]
                    cells[0]["bytes"] += group["bytes_in"]
                cells[number + 1]["documents"] += group["out"]
                cells[number + 1]["bytes"] += group["bytes_out"]
    return [
        {"lang": lang, "source": source, "cells": cells, "kept": _share(cells[-1]["bytes"], cells[0]["bytes"])}
        for (lang, source), cells in sorted(rows.items(), key=lambda row: (row[0][0] == OTHERS, row[0]))
        if any(cell["documents"] for cell in cells)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
