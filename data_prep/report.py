#!/usr/bin/env python3
"""Write one HTML page about finished data jobs: text through each stage, why documents were dropped, samples, tokens."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.core.tally import merged
from data_prep.reporting.details import charts_of, facts_of
from data_prep.reporting.flow import Column, flows
from data_prep.reporting.quantities import counted, percent, size
from data_prep.reporting.sankey import Styles, sankey
from data_prep.reporting.stages import (
    DUPLICATES,
    MASKED,
    OTHERS,
    PURPOSES,
    FinishedStage,
    in_order,
    languages_of,
    read_stage,
    split_name,
    table_rows,
    tokens_by_language,
)
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.pages.palette import OTHER, SOURCES, source_styles
from recipe.base.pages.template import write_page

TEMPLATE = Path(__file__).with_name("report.html.j2")
MOST_LINES = 5  # of a card, beside the one for all others


def headline(stages: Sequence[FinishedStage], flow: Sequence[Column], languages: Sequence[str]) -> list[dict[str, Any]]:
    """The numbers that the page begins with: a title, a value and a few lines each; documents and text of one flow."""
    cards = [_documents(flow), *_text(flow)]
    read = {stage.parent for stage in stages if stage.totals}  # tokens that are packed are counted where they end
    tokens = [stage for stage in stages if stage.totals and stage.checksum not in read]
    for split in ("train", "held_out"):
        by_language: dict[str, int] = {}
        for stage in tokens:
            for lang, splits in tokens_by_language(stage, languages).items():
                by_language[lang] = by_language.get(lang, 0) + splits.get(split, {}).get("tokens", 0)
        if sum(by_language.values()):
            cards.append(_card(f"tokens, {split_name(split)}", f"{sum(by_language.values()):,}", _largest(by_language)))
    dropped = merged(stage.counts.get("dropped", {}) for stage in stages if stage.name == "dedup")
    if duplicates := {name: dropped[name] for name in DUPLICATES if dropped.get(name)}:
        lines = [f"{number:,} {name.removesuffix('_duplicate')}" for name, number in duplicates.items()]
        cards.append(_card("duplicates removed", f"{sum(duplicates.values()):,}", lines))
    masked = merged(kinds for stage in stages for kinds in stage.results.get("masked", {}).values())
    if sum(masked.values()):
        lines = [f"{number:,} {MASKED.get(kind, kind)}" for kind, number in masked.items() if number]
        cards.append(_card("personal data masked", f"{sum(masked.values()):,}", lines))
    bilingual = merged(labels for stage in stages for labels in stage.results.get("bilingual", {}).values())
    if documents := {label: numbers["documents"] for label, numbers in bilingual.items()}:
        cards.append(_card("documents in two languages", f"{sum(documents.values()):,}", _largest(documents)))
    return cards


def _largest(numbers: Mapping[str, int]) -> list[str]:
    """A line for each of the largest, and one for all others."""
    lines = sorted(((name, number) for name, number in numbers.items() if number), key=lambda item: -item[1])
    if others := lines[MOST_LINES:]:
        lines = [*lines[:MOST_LINES], (f"{len(others):,} others", sum(number for _, number in others))]
    return [f"{name} {number:,}" for name, number in lines]


def _card(title: str, value: str, lines: Sequence[str]) -> dict[str, Any]:
    return {"title": title, "value": value, "lines": list(lines)}


def _documents(flow: Sequence[Column]) -> dict[str, Any]:
    came, kept = flow[0].documents, flow[-1].documents
    return _card("documents", f"{came:,} → {kept:,}", [f"{percent(kept / came)} kept"] if came else [])


def _text(flow: Sequence[Column]) -> list[dict[str, Any]]:
    """The bytes of text at the beginning of a flow and where its documents end; none of shards, which are tokens."""
    came, kept = (sum(column.amounts.values()) for column in (flow[0], flow[-1]))
    if not came or flow[-1].unit == "tokens":
        return []
    return [_card("text", f"{size(came)} → {size(kept)}", [f"{percent(kept / came)} kept"])]


def totals_of(stage: FinishedStage) -> list[dict[str, Any]]:
    """A row of each split and series of shards, the training ones first."""
    rows = []
    for split, sources in sorted(stage.totals.items(), key=lambda item: item[0] != "train"):
        for source, n in sources.items():
            rate = n["text_bytes"] / n["tokens"] if n["text_bytes"] and n["tokens"] else None
            rows.append({"split": split_name(split), "source": source, **n, "rate": rate})
    return rows


def fertility_of(stage: FinishedStage) -> list[dict[str, Any]]:
    """A row of each tokenizer, language and source that was measured."""
    measured = stage.results.get("fertility", {})
    names = _short_names(list(measured))
    return [
        {
            "tokenizer": names[name],
            "lang": lang,
            "source": source,
            "rate": n["bytes"] / max(1, n["tokens"]),
            "fertility": n["tokens"] / max(1, n["characters"]),
            "changed": n["round_trip_failures"],
        }
        for name, languages in measured.items()
        for lang, sources in languages.items()
        for source, n in sources.items()
    ]


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Folders without what all of them begin with."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
    return {path: os.path.relpath(os.path.abspath(path), shared) for path in paths}


def legend(stages: Sequence[FinishedStage], styles: Styles) -> list[dict[str, str]]:
    """The colours that the page uses, each with its language."""
    shown = [{"style": style, "name": lang} for lang, style in styles.items()]
    others = {lang for stage in stages for lang in stage.groups} - set(styles)
    return shown + ([{"style": OTHER, "name": OTHERS}] if others else [])


def render(folders: Iterable[Path]) -> str:
    """The report of these stages, each after the one that it read."""
    once = {os.path.realpath(folder): folder for folder in folders}
    stages = in_order(read_stage(folder) for folder in once.values())
    languages = languages_of(stages)
    styles = source_styles(languages[: len(SOURCES)])
    filters = [stage for stage in stages if stage.groups]
    every_flow = flows(stages, languages)
    found = [flow for flow in every_flow if any(column.amounts for column in flow)]
    return write_page(
        TEMPLATE,
        {
            "size": size,
            "percent": percent,
            "counted": counted,
            "charts": lambda stage: charts_of(stage, styles),
            "totals": totals_of,
            "fertility": fertility_of,
            "facts": facts_of,
        },
        stages=stages,
        purposes=PURPOSES,
        filters=filters,
        folder=os.path.commonpath([os.path.abspath(stage.folder) for stage in stages]),
        dates=sorted(f"{stage.finished:%Y-%m-%d %H:%M}" for stage in stages),
        cards=headline(stages, max(reversed(every_flow), key=len), languages),
        flows=[sankey(flow, styles) for flow in found],
        held_out=any(column.held_out for flow in found for column in flow),
        passed=any(column.passed for flow in found for column in flow),
        drops=any(column.lost for flow in found for column in flow),
        legend=legend(stages, styles),
        table=table_rows(filters),
    )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python data_prep/report.py work/curated work/deduped work/tokens --output work/data.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="+", type=Path, help="output folders of finished data jobs")
    parser.add_argument("--output", required=True, type=Path, help="HTML file to write, such as work/data.html")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name an HTML file, such as {args.output / 'data.html'}")
    write_text(args.output, render(args.stages))
    print(f"report of {counted(len(args.stages), 'stage')} -> {args.output}; open it in a browser")


if __name__ == "__main__":
    raise SystemExit(main())
