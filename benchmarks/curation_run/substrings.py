"""Spans that stand elsewhere before: those that dedup finds beside those of a suffix array, on the same text.

The text is of the embedded grammars, with passages planted whole and in part. A suffix array over all of it says which
characters are to be found; the planted ones show what the cuts, which end with sentences, leave of them.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.core.shuffle import Shuffle, column
from data_prep.deduplication.cuts import cuts_of
from data_prep.deduplication.signatures import RECORD_BITS
from data_prep.deduplication.spans import RepeatedSpans, find_spans
from data_prep.documents.reading import Part, write_documents
from data_prep.grammars.grammar import GRAMMARS
from recipe.base.errors import UserError
from recipe.base.tables import markdown_table

PEER_SCRIPT = Path(__file__).resolve().parent.parent / "peers" / "suffix_array_spans.py"
LANGUAGES = ("en", "zh")
PASSAGES = 400
PLANTED_SHARE = 0.3  # of the documents
Spans = list[tuple[int, int]]


def measure(peers: Path, documents: int = 4_000) -> dict[str, Any]:
    """How many characters stand elsewhere before, are found, found falsely, and cut; MB of text a CPU second.

    Args:
        peers: the interpreter that has the packages of `benchmarks/peers/requirements.txt`.
        documents: in each language.

    Raises:
        UserError: the suffix array is not made.
    """
    config = RepeatedSpans()
    texts, planted = planted_texts(documents, config.min_characters)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        write_documents(path, [{"id": str(number), "text": text} for number, text in enumerate(texts)])
        cpu_s, found = our_spans(path, len(texts), config)
        peer_cpu_s, expected = _peer_spans(peers, path, config.min_characters)
    starts_stops = ([np.array(edges, np.int64) for edges in zip(*spans, strict=True)] for spans in found)
    cuts = [
        cuts_of(text, *(edges or [np.zeros(0, np.int64)] * 2)) for text, edges in zip(texts, starts_stops, strict=True)
    ]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "min_characters": config.min_characters,
        "documents": len(texts),
        "megabytes": megabytes,
        "repeated": _size(expected),
        "found": _common(found, expected),
        "false": _size(found) - _common(found, expected),
        "planted": _size(planted),
        "planted_found": _common(found, planted),
        "planted_cut": _common(cuts, planted),
        "cut": _size(cuts),
        "cut_false": _size(cuts) - _common(cuts, expected),
        "mb_per_cpu_s": {"ours": megabytes / cpu_s, "pydivsufsort": megabytes / peer_cpu_s},
    }


def planted_texts(documents: int, least: int, seed: int = 0) -> tuple[list[str], list[Spans]]:
    """Texts of the grammars, in some of them a passage or a part of it; of each, where a passage stands that came before.

    A part has at least `least` characters, and comes after the passage as a whole.
    """
    draw, texts, planted = random.Random(seed), list[str](), list[Spans]()
    for language in LANGUAGES:
        grammar = GRAMMARS[language]
        passages = [grammar.document(draw).replace("\n", " ") * 2 for _ in range(PASSAGES)]
        passages = [
            passage[: draw.randrange(2 * least, 4 * least)] for passage in passages if len(passage) >= 4 * least
        ]
        for passage in passages:
            texts.append(f"{grammar.document(draw)} {passage}")
            planted.append([])
        for _ in range(documents):
            text, span = grammar.document(draw), Spans()
            if draw.random() < PLANTED_SHARE:
                passage = draw.choice(passages)
                start = draw.choice((0, draw.randrange(len(passage) - least)))
                part = passage[start : draw.randrange(start + least, len(passage) + 1)]
                place = draw.randrange(len(text))
                text, span = text[:place] + part + text[place:], [(place, place + len(part))]
            texts.append(text)
            planted.append(span)
    return texts, planted


def our_spans(path: Path, documents: int, config: RepeatedSpans) -> tuple[float, list[Spans]]:
    """CPU seconds and the spans of each text; the phases of dedup run here, one task after the other."""

    def run(_: str, task: Callable[..., Any], items: Sequence[Any], *_more: Any) -> list[dict[str, Any]]:
        return [task(item, number) for number, item in enumerate(items)]

    all_stay = pa.table({"record": np.arange(documents, dtype=np.uint64)}), np.full(documents, -1, np.int8)
    start = time.process_time()
    spans = find_spans(run, lambda name: Shuffle(path.parent / name), [Part(path)], config, lambda _: all_stay)
    cpu_s, found = time.process_time() - start, [Spans() for _ in range(documents)]
    table = spans.read(0, 1)
    rows = (column(table, name).tolist() for name in ("document", "start", "stop"))
    for document, first, stop in sorted(zip(*rows, strict=True)):
        found[document & ((1 << RECORD_BITS) - 1)].append((first, stop))
    return cpu_s, found


def _peer_spans(python: Path, path: Path, least: int) -> tuple[float, list[Spans]]:
    words = [str(python), "-W", "ignore", str(PEER_SCRIPT), str(path), str(least)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{PEER_SCRIPT.name} fails with {reason[0]}; make benchmark-peers installs what it needs")
    result = json.loads(done.stdout)
    return result["cpu_s"], [[(start, stop) for start, stop in spans] for spans in result["spans"]]


def _size(texts: Sequence[Spans]) -> int:
    return sum(stop - start for spans in texts for start, stop in spans)


def _common(some: Sequence[Spans], others: Sequence[Spans]) -> int:
    """How many characters both have; the spans of one text are apart from each other."""
    return sum(
        max(0, min(stop, other_stop) - max(start, other_start))
        for spans, other_spans in zip(some, others, strict=True)
        for start, stop in spans
        for other_start, other_stop in other_spans
    )


def table(result: dict[str, Any]) -> str:
    """Characters that are found and cut, and speed, in Markdown."""
    share = lambda part, whole: f"{100 * result[part] / result[whole]:.2f}%"  # noqa: E731
    speeds = result["mb_per_cpu_s"]
    rows = [
        ["found, of the characters that a suffix array finds", share("found", "repeated"), "100%"],
        ["found beside them, characters", f"{result['false']:,}", "0"],
        ["planted: found", share("planted_found", "planted"), ""],
        ["planted: cut, in whole sentences", share("planted_cut", "planted"), ""],
        ["MB of text a CPU second", *(f"{speeds[tool]:.1f}" for tool in ("ours", "pydivsufsort"))],
    ]
    return markdown_table([f"spans of {result['min_characters']} characters", "ours", "pydivsufsort"], rows)
