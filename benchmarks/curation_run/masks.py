"""Precision and recall of masks of personal data on marked cases, ours beside the rules of other libraries.

A mask counts where it covers a marked span of its kind and beyond it at most punctuation and blanks; any other mask is
false. `benchmarks/labelled/masks.md` says what is marked and why.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_prep.curation.personal import Masks, personal_spans_of
from recipe.base.errors import UserError

BENCHMARKS = Path(__file__).resolve().parent.parent
CASES = BENCHMARKS / "labelled" / "masks.jsonl"
PEER_SCRIPT = BENCHMARKS / "peers" / "mask_spans.py"
KINDS = ("email", "phone", "identity", "ip")

Span = tuple[int, int, str]


def measure(peers: Path) -> dict[str, Any]:
    """Per tool, split and kind: marked spans, masks, right ones, precision and recall (null: no mask, no span).

    Args:
        peers: the interpreter that has the packages of `benchmarks/peers/requirements.txt`.

    Raises:
        UserError: the peers do not run.
    """
    cases = read_cases()
    found = {"ours": {case["id"]: personal_spans_of(case["text"], Masks()) for case in cases}, **_peer_spans(peers)}
    return {
        "cases": dict(Counter(case["split"] for case in cases)),
        "cases_without_spans": sum(not case["spans"] for case in cases),
        "tools": {tool: scores(cases, spans) for tool, spans in found.items()},
    }


def read_cases() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def _peer_spans(python: Path) -> dict[str, dict[str, list[Span]]]:
    words = [str(python), "-W", "ignore", str(PEER_SCRIPT), str(CASES)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{PEER_SCRIPT.name} fails with {reason[0]}; make benchmark-peers installs what it needs")
    return json.loads(done.stdout)


def scores(cases: Iterable[dict[str, Any]], spans: dict[str, list[Span]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By split and kind. A span that several masks cover is found once, and the masks beyond the first are false."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case in cases:
        for kind in KINDS:
            marked = [(start, stop) for start, stop, name in case["spans"] if name == kind]
            masks = [(start, stop) for start, stop, name in spans[case["id"]] if name == kind]
            right = sum(any(_covers(mask, span, case["text"]) for mask in masks) for span in marked)
            counts[case["split"], kind].update(marked=len(marked), masks=len(masks), right=right)
    return {
        split: {kind: _rates(counts[split, kind]) for kind in KINDS if (split, kind) in counts}
        for split in sorted({case["split"] for case in cases})
    }


def _covers(mask: tuple[int, int], span: tuple[int, int], text: str) -> bool:
    beyond = text[mask[0] : span[0]] + text[span[1] : mask[1]]
    return mask[0] <= span[0] and span[1] <= mask[1] and not any(char.isalnum() for char in beyond)


def _rates(counts: Counter[str]) -> dict[str, Any]:
    precision = counts["right"] / counts["masks"] if counts["masks"] else None
    recall = counts["right"] / counts["marked"] if counts["marked"] else None
    return {name: counts[name] for name in ("marked", "masks", "right")} | {"precision": precision, "recall": recall}


def mistakes(cases: Iterable[dict[str, Any]], spans: Callable[[str], list[Span]]) -> list[str]:
    """The missed spans and the false masks of each case, to be read while rules are written."""
    lines = []
    for case in cases:
        text, marked, masks = case["text"], [tuple(span) for span in case["spans"]], spans(case["text"])
        pairs = [(m, s) for m in masks for s in marked if m[2] == s[2] and _covers(m[:2], s[:2], text)]
        missed = set(marked) - {span for _, span in pairs}
        false = set(masks) - {mask for mask, _ in pairs}
        lines += [f"{case['id']} missed {kind}: {text[start:stop]!r}" for start, stop, kind in sorted(missed)]
        lines += [f"{case['id']} false {kind}: {text[start:stop]!r} in {text!r}" for start, stop, kind in sorted(false)]
    return lines


def table(result: dict[str, Any]) -> str:
    """Precision / recall of the test split in Markdown, a row a tool; a dash: the tool has no such rule."""
    marked = {kind: score["marked"] for kind, score in result["tools"]["ours"]["test"].items()}
    rows = [
        "| masks | " + " | ".join(f"{kind} ({marked[kind]})" for kind in KINDS) + " |",
        "|---|" + "---|" * len(KINDS),
    ]
    for tool, by_split in result["tools"].items():
        rows.append(f"| {tool} | " + " | ".join(_cell(by_split["test"][kind]) for kind in KINDS) + " |")
    return "\n".join(rows)


def _cell(score: dict[str, Any]) -> str:
    return f"{score['precision']:.2f} / {score['recall']:.2f}" if score["masks"] else "–"
