"""What the data report says of one stage beside its drops: bars, and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.curation.rules import PROSE
from data_prep.packing.sequences import sentence_of
from data_prep.reporting.quantities import counted
from data_prep.reporting.sankey import Styles
from data_prep.reporting.stages import MASKED, FinishedStage
from recipe.base.pages.palette import OTHER, RUN


def charts_of(stage: FinishedStage, styles: Styles) -> list[dict[str, Any]]:
    """Bars of a stage: title, what the rows are, unit, style, rows without the empty."""
    charts = []
    for title, label, unit, lang, rows in _charts(stage):
        shown = {name: number for name, number in rows.items() if number}
        if shown:
            style = RUN if lang is None else styles.get(lang, OTHER)
            charts.append({"title": title, "label": label, "unit": unit, "style": style, "rows": shown})
    return charts


Chart = tuple[str, str, str, str | None, Mapping[str, int]]


def _charts(stage: FinishedStage) -> Iterable[Chart]:
    results = stage.results
    if stage.name == "dedup":
        yield (
            "Size of the clusters of duplicates",
            "documents",
            "clusters",
            None,
            stage.counts.get("clusters_by_size", {}),
        )
    for language, bins in results.get("log2_characters", {}).items():
        named = {_from_power(int(b)): n for b, n in sorted(bins.items(), key=lambda i: int(i[0])) if int(b)}
        yield f"Length of kept documents, {language}", "characters", "documents", language, named
    for source, packed in results.get("packing", {}).get("sources", {}).items():
        named = {_from_power(int(b)): n for b, n in packed["log2_tokens"].items()}
        yield f"Length of packed documents, {source}", "tokens", "documents", None, named
    for language, bins in results.get("confidence", {}).items():
        if len(bins) > 1 and sum(bins.values()) > 20:
            named = {_interval(float(low)): n for low, n in sorted(bins.items(), key=lambda item: float(item[0]))}
            yield f"Share of the text in the main language, {language}", "share", "documents", language, named
    for language, kinds in results.get("masked", {}).items():
        named = {MASKED.get(kind, kind): n for kind, n in kinds.items()}
        yield f"Personal data masked, {language}", "kind", "places", language, named
    for language, kinds in results.get("kinds", {}).items():
        if set(kinds) != {PROSE}:
            yield f"Kinds of text that stay, {language}", "kind", "documents", language, largest_first(kinds)
    for language, labels in results.get("bilingual", {}).items():
        named = {label: n["documents"] for label, n in labels.items()}
        yield f"Documents in two languages, mostly {language}", "how", "documents", language, largest_first(named)
    if stage.name == "train_tokenizer":
        yield "Text that the tokenizer learnt from", "language", "bytes", None, stage.counts.get("bytes", {})
    if "documents_by_set" in results:
        yield "Documents removed, by evaluation set", "file", "documents", None, results["documents_by_set"]
    if "vocabulary" in results:
        scripts = {name.replace("_", " "): n for name, n in results["vocabulary"]["by_script"].items()}
        yield "Vocabulary by script", "script", "tokens", None, dict(sorted(scripts.items(), key=lambda i: -i[1]))


def largest_first(numbers: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))


def _from_power(bits: int) -> str:
    """The numbers that have so many bits."""
    return f"{1 << (bits - 1):,} to {(1 << bits) - 1:,}"


def _interval(low: float) -> str:
    """Of a bin that is 5% wide; what is wholly in one language has a bin of its own."""
    return f"{low:.0%}" if low >= 1 else f"{low:.0%} to {low + 0.05:.0%}"


def facts_of(stage: FinishedStage) -> list[str]:
    """Sentences about what a stage has made or changed."""
    facts, results = [], stage.results
    for language, marks in results.get("marks_widened", {}).items():
        if marks:
            facts.append(f"{counted(marks, 'half-width mark')} after {language} text became full-width.")
    for name, cut in (
        ("span", stage.counts.get("repeated_spans", {})),
        ("line", stage.counts.get("repeated_lines", {})),
    ):
        if cut.get(f"{name}s"):
            facts.append(
                f"{counted(cut[f'{name}s'], f'repeated {name}')} cut from {counted(cut['documents'], 'document')}."
            )
    if stage.name == "train_quality":
        facts += [_agreement_of(language, result) for language, result in results["languages"].items()]
    if "packing" in results:
        packing = results["packing"]
        facts += [f"{sentence_of(s, of, packing['seq_length'])}." for s, of in packing["sources"].items()]
    if "vocab_size" in results:
        asked = results["requested"]
        less = "" if results["vocab_size"] == asked else f", {asked:,} were asked for"
        facts.append(f"The vocabulary has {results['vocab_size']:,} tokens{less}.")
    if "vocabulary" in results:
        vocabulary, changed = results["vocabulary"], stage.counts["round_trip_failures"]
        facts.append(
            f"{vocabulary['unused']:,} of the {vocabulary['vocab_size']:,} tokens are in none of the documents."
        )
        facts.append(
            f"{counted(changed, 'document')} changed when decoded."
            if changed
            else "All documents were the same when decoded."
        )
    return facts


def _agreement_of(language: str, result: dict[str, Any]) -> str:
    measured = result["agreement"]
    numbers = {
        name: "none" if measured[name] is None else f"{measured[name]:.3f}" for name in ("precision", "recall", "auc")
    }
    return (
        f"{language}: {measured['accuracy']:.1%} of {counted(measured['documents'], 'held-out document')} are judged as labelled at "
        f"the threshold {result['threshold']:.3f}; precision {numbers['precision']}, recall {numbers['recall']}, "
        f"AUC {numbers['auc']}."
    )
