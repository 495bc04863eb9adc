"""Precision and recall of dropping on the labelled documents: our rules beside FineWeb's and FineWeb-2's.

A document that the set says to drop and that a tool drops is dropped rightly. Precision is the share of a tool's drops
that are right; recall is the share of the documents to drop that it drops. `benchmarks/labelled/README.md` says what is
to be kept and why.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.curation.curator import Curator
from data_prep.curation.settings import load_curate_config
from recipe.base.errors import UserError
from recipe.base.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent.parent
LABELLED = ROOT / "benchmarks" / "labelled"
CONFIG = ROOT / "data_prep" / "configs" / "curate.yaml"
PEER_SCRIPT = ROOT / "benchmarks" / "peers" / "fineweb_rules.py"
PUBLISHED = {"en": "FineWeb", "zh": "FineWeb-2"}  # whose rules of a language are published
SPLITS = ("all", "dev", "test")
SHOWN_DOCUMENTS = 5  # kinds with fewer are in the result, and not in the table

Row = dict[str, Any]
Reasons = dict[str, str]  # id -> why, of the documents that a tool drops


def measure(peers: Path) -> dict[str, Any]:
    """What the labelled set says of our rules and of the published ones.

    Args:
        peers: the interpreter that has the packages of `benchmarks/peers/requirements.txt`.

    Raises:
        UserError: the published rules do not run.
    """
    rows = labelled()
    version, published = published_reasons(rows, peers)
    return {"datatrove": version, **compare(rows, {"ours": our_reasons(rows), "published": published})}


def labelled(folder: Path = LABELLED) -> list[Row]:
    """The documents of all languages, each of which has a file named by its code."""
    return [json.loads(line) for file in sorted(folder.glob("??.jsonl")) for line in file.open(encoding="utf-8")]


def our_reasons(rows: Iterable[Row]) -> Reasons:
    """By the configuration that is shipped; the language is found and not told."""
    curator = Curator(load_curate_config(CONFIG))
    verdicts = {row["id"]: curator.judge({"id": row["id"], "text": row["text"]}, "labelled") for row in rows}
    return {name: verdict.reason for name, verdict in verdicts.items() if verdict.reason is not None}


def published_reasons(rows: Iterable[Row], python: Path) -> tuple[str, Reasons]:
    """datatrove's version, and what FineWeb's rules drop of the English rows and FineWeb-2's of the Chinese ones."""
    lines = "".join(json.dumps(row) + "\n" for row in rows if row["lang"] in PUBLISHED)
    done = subprocess.run(
        [str(python), "-W", "ignore", str(PEER_SCRIPT)], input=lines, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{PEER_SCRIPT.name} fails with {last[0]}; make benchmark-peers installs what it needs")
    printed = json.loads(done.stdout)
    return printed["datatrove"], printed["dropped"]


def compare(rows: list[Row], tools: dict[str, Reasons]) -> dict[str, Any]:
    """By language: documents, each tool's scores by split and by rule, and how many of each kind a tool drops."""
    result = {}
    for language in sorted({row["lang"] for row in rows}):
        mine = [row for row in rows if row["lang"] == language]
        result[language] = {
            "documents": {split: _sizes(part_of(mine, split)) for split in SPLITS},
            "tools": {
                tool: {split: score(part_of(mine, split), reasons) for split in SPLITS}
                for tool, reasons in tools.items()
            },
            "rules": {tool: by_rule(mine, reasons) for tool, reasons in tools.items()},
            "kinds": by_kind(mine, tools),
        }
    return {"languages": result}


def part_of(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if split in ("all", row["split"])]


def _sizes(rows: list[Row]) -> dict[str, int]:
    keep = sum(row["keep"] for row in rows)
    return {"keep": keep, "drop": len(rows) - keep}


def score(rows: list[Row], reasons: Reasons) -> dict[str, Any]:
    """Drops, right ones, precision and recall; null where there is nothing to divide by."""
    dropped = [row for row in rows if row["id"] in reasons]
    rightly, to_drop = sum(not row["keep"] for row in dropped), sum(not row["keep"] for row in rows)
    return {
        "dropped": len(dropped),
        "rightly": rightly,
        "precision": _share(rightly, len(dropped)),
        "recall": _share(rightly, to_drop),
    }


def by_rule(rows: list[Row], reasons: Reasons) -> dict[str, dict[str, Any]]:
    """The score of each rule for the documents that it is the first to drop, the busiest first."""
    names = Counter(reasons[row["id"]] for row in rows if row["id"] in reasons)
    return {
        rule: score(rows, {name: reason for name, reason in reasons.items() if reason == rule})
        for rule, _ in sorted(names.items(), key=lambda item: (-item[1], item[0]))
    }


def by_kind(rows: list[Row], tools: dict[str, Reasons]) -> list[dict[str, Any]]:
    """Kinds of text, those to keep first: how many documents, and how many of them each tool drops."""
    kinds = Counter((not row["keep"], row["kind"]) for row in rows)
    dropped = {tool: Counter((not r["keep"], r["kind"]) for r in rows if r["id"] in tools[tool]) for tool in tools}
    return [
        {"kind": kind, "keep": not drop, "documents": count, "dropped": {t: dropped[t][drop, kind] for t in tools}}
        for (drop, kind), count in sorted(kinds.items())
    ]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def table(result: dict[str, Any]) -> str:
    """The measurement as Markdown: tools, then our rules one by one, then kinds of text."""
    tables = (_tools_table, _rules_table, _kinds_table)
    note = (
        f"The published rules run in datatrove {result['datatrove']}, without their filters by URL and by language. Kinds of "
        f"text with under {SHOWN_DOCUMENTS} documents are left out of the last table."
    )
    return "\n\n".join([*(make(result["languages"]) for make in tables), note])


def _tools_table(languages: dict[str, Any]) -> str:
    head = ["language", "rules", *(f"{what}, {split}" for split in SPLITS for what in ("precision", "recall"))]
    rows = [
        [
            language,
            _title(tool, language),
            *(_percent(scores[s][what]) for s in SPLITS for what in ("precision", "recall")),
        ]
        for language, found in languages.items()
        for tool, scores in found["tools"].items()
    ]
    return markdown_table(head, rows, left=2)


def _rules_table(languages: dict[str, Any]) -> str:
    rows = [
        [
            language,
            f"`{rule}`",
            str(at["dropped"]),
            str(at["rightly"]),
            _percent(at["precision"]),
            _percent(at["recall"]),
        ]
        for language, found in languages.items()
        for rule, at in found["rules"]["ours"].items()
    ]
    return markdown_table(["language", "our rule", "dropped", "rightly", "precision", "recall"], rows, left=2)


def _kinds_table(languages: dict[str, Any]) -> str:
    rows = [
        [language, kind["kind"], "keep" if kind["keep"] else "drop", str(kind["documents"]),
         str(kind["dropped"]["ours"]), str(kind["dropped"]["published"])]
        for language, found in languages.items()
        for kind in found["kinds"]
        if kind["documents"] >= SHOWN_DOCUMENTS
    ]  # fmt: skip
    head = ["language", "kind of text", "is to", "documents", "ours drops", "FineWeb's drops"]
    return markdown_table(head, rows, left=3)


def _title(tool: str, language: str) -> str:
    return PUBLISHED[language] if tool == "published" else tool


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
