#!/usr/bin/env python3
"""One HTML file of what the data jobs did: documents and bytes through each stage, rule by rule, with samples."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_prep.core.tally import by, merged
from data_prep.documents.reading import document_files, read_documents
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_text
from recipe.base.strict import load_json

SAMPLES, SAMPLE_CHARACTERS = 3, 600  # of each rule, and of each sample's text
_WIDTH, _HEIGHT, _COLUMN, _GAP = 150, 260, 16, 70  # of the flow: pixels between columns, of a column, at its foot


def read_stage(folder: Path) -> dict[str, Any]:
    """A finished stage's manifest as the template takes it.

    Raises:
        UserError: the folder is not the output of a finished data job.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder} has no manifest.json; give the output folders of finished data jobs")
    manifest = load_json(path)
    counts, results = manifest["counts"], manifest["results"]
    groups = counts.get("groups", {})
    return {
        "name": manifest["stage"],
        "folder": str(folder),
        "counts": counts,
        "groups": groups,
        "languages": sorted(groups),
        "dropped": _dropped(groups),
        "samples": _samples(folder / "dropped"),
        "charts": _charts(manifest["stage"], counts, results),
        "totals": _totals(counts.get("totals", {})),
        "fertility": _fertility(results.get("fertility", {})),
    }


def _dropped(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row of each reason, the most frequent first."""
    languages = by(groups, "language")
    total = merged(languages.values())
    rows = [
        {
            "reason": reason,
            "documents": documents,
            "bytes": total["bytes_dropped"].get(reason, 0),
            "by_language": [group["dropped"].get(reason, 0) for group in languages.values()],
        }
        for reason, documents in total.get("dropped", {}).items()
    ]
    return sorted(rows, key=lambda row: (-row["documents"], row["reason"]))


def _samples(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The first dropped documents of each reason, cut."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in document_files(folder) if folder.is_dir() else ():
        for document in read_documents(path, lambda bad: None):
            samples = found.setdefault(document["dropped"], [])
            if len(samples) < SAMPLES:
                samples.append({"id": document["id"], "text": document["text"][:SAMPLE_CHARACTERS]})
    return dict(sorted(found.items()))


def _charts(stage: str, counts: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    charts: dict[str, dict[str, int]] = {}
    if stage == "dedup":
        charts["Clusters of duplicates, by their number of documents"] = counts["clusters_by_size"]
    for language, bins in results.get("log2_characters", {}).items():
        named = {
            f"{1 << (int(b) - 1):,} to {(1 << int(b)) - 1:,}": n
            for b, n in sorted(bins.items(), key=lambda i: int(i[0]))
        }
        charts[f"Characters of kept documents, {language}"] = named
    for language, bins in results.get("confidence", {}).items():
        if len(bins) > 1 and sum(bins.values()) > 20:
            charts[f"Share of the text in its language, {language}"] = dict(sorted(bins.items()))
    for language, kinds in results.get("masked", {}).items():
        charts[f"Personal data masked, {language}"] = kinds
    if "documents_by_set" in results:
        charts["Documents removed, by evaluation set"] = results["documents_by_set"]
    if "vocabulary" in results:
        charts["Vocabulary, tokens by script"] = results["vocabulary"]["by_script"]
    return charts


def _totals(totals: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"split": split, "source": source, **n, "rate": n["text_bytes"] / max(1, n["tokens"])}
        for split, sources in totals.items()
        for source, n in sources.items()
    ]


def _fertility(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "tokenizer": name,
            "lang": lang,
            "source": source,
            "rate": n["bytes"] / max(1, n["tokens"]),
            "fertility": n["tokens"] / max(1, n["characters"]),
        }
        for name, languages in found.items()
        for lang, sources in languages.items()
        for source, n in sources.items()
    ]


def flow_table(flow: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of each language and source with what is left of it after every stage that filters."""
    names = sorted(
        {(lang, source) for stage in flow for lang, sources in stage["groups"].items() for source in sources}
    )
    rows = []
    for lang, source in names:
        groups = [stage["groups"].get(lang, {}).get(source, {}) for stage in flow]
        cells = [{"documents": g.get("out", 0), "bytes": g.get("bytes_out", 0)} for g in groups]
        rows.append(
            {
                "lang": lang,
                "source": source,
                "cells": cells,
                "kept": cells[-1]["bytes"] / max(1, groups[0].get("bytes_in", 0)),
            }
        )
    return rows


def sankey(flow: list[dict[str, Any]], languages: list[str]) -> str:
    """An SVG: a column of bytes by language before and after every stage, bands between them, what goes in red."""
    whole = max(1, sum(g["bytes_in"] for g in by(flow[0]["groups"], "language").values()))
    columns = [{lang: g["bytes_in"] for lang, g in by(flow[0]["groups"], "language").items()}]
    columns += [{lang: g["bytes_out"] for lang, g in by(stage["groups"], "language").items()} for stage in flow]
    scale, shapes = _HEIGHT / whole, []
    for i, column in enumerate(columns):
        x, y = 10 + i * _WIDTH, 10.0
        following = columns[i + 1] if i + 1 < len(columns) else None
        next_y = 10.0
        for number, lang in enumerate(languages):
            height = column.get(lang, 0) * scale
            colour = f"var(--c{number % 5})"
            shapes.append(f'<rect x="{x}" y="{y:.1f}" width="{_COLUMN}" height="{height:.1f}" style="fill: {colour}"/>')
            if following is not None:
                kept = following.get(lang, 0) * scale
                shapes.append(_band(x, y, kept, next_y, colour))
                shapes.append(_lost(x, y + kept, height - kept))
                next_y += kept
            y += height
        label = "in" if i == 0 else flow[i - 1]["name"]
        shapes.append(f'<text x="{x}" y="{_HEIGHT + 30}">{label}</text>')
        shapes.append(f'<text x="{x}" y="{_HEIGHT + 46}">{_size(sum(column.values()))}</text>')
    width, height = 60 + len(columns) * _WIDTH, _HEIGHT + _GAP
    return f'<svg width="{width}" height="{height}" role="img" aria-label="bytes through the stages">{"".join(shapes)}</svg>'


def _band(x: float, y: float, height: float, target: float, colour: str) -> str:
    left, right = x + _COLUMN, x + _WIDTH
    middle = (left + right) / 2
    return (
        f'<path style="fill: {colour}; opacity: .35" d="M{left},{y:.1f} C{middle},{y:.1f} {middle},{target:.1f} {right},{target:.1f} '
        f'L{right},{target + height:.1f} C{middle},{target + height:.1f} {middle},{y + height:.1f} {left},{y + height:.1f} Z"/>'
    )


def _lost(x: float, y: float, height: float) -> str:
    if height <= 0:
        return ""
    left = x + _COLUMN
    return f'<path style="fill: var(--gone); opacity: .6" d="M{left},{y:.1f} l30,{height / 2:.1f} l-30,{height / 2:.1f} Z"/>'


def _thousands(number: float) -> str:
    return f"{number:,}"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


def render(folders: Iterable[Path]) -> str:
    """The report of these stages, in their order."""
    stages = [read_stage(folder) for folder in folders]
    flow = [stage for stage in stages if stage["groups"]]
    languages = sorted({lang for stage in flow for lang in stage["groups"]})
    if flow:  # the largest first, so that the rare ones share the last colour
        sizes = {lang: sum(g["bytes_in"] for g in sources.values()) for lang, sources in flow[0]["groups"].items()}
        languages.sort(key=lambda lang: (-sizes.get(lang, 0), lang))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(thousands=_thousands, size=_size)
    drawing = Markup(sankey(flow, languages)) if flow else ""
    return environment.get_template("report.html.j2").render(
        stages=stages, flow=flow, languages=languages, table=flow_table(flow), sankey=drawing
    )


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python data_prep/report.py work/curated work/deduped work/tokens --output work/data.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="+", type=Path, help="output folders of finished data jobs, in their order")
    parser.add_argument("--output", required=True, type=Path, help="the HTML file")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name an HTML file")
    write_text(args.output, render(args.stages))
    print(f"report of {len(args.stages)} stages -> {args.output}")


if __name__ == "__main__":
    raise SystemExit(main())
