#!/usr/bin/env python3
"""How near a ladder of small runs comes to the loss of a larger one, on real text: documents to a fitted law in one command.

    python benchmarks/ladder.py --corpus my/documents --work work/ladder --output benchmarks/results/ladder.json

The documents pass the data jobs with their defaults and a small vocabulary; then launch/ladder.py trains small models of the
tiny model's family, each on one core. It writes the prediction of the largest before that one runs. A second start goes on where
the first was stopped. Prints the ladder's record as JSON, with the seconds of its runs, and those of the whole
where nothing was there before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.moe_layer import machine, report  # noqa: E402
from launch.quickstart import data_steps, follow, write_config  # noqa: E402
from recipe.base.arguments import output_file  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import duration, markdown_table  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402
from recipe.run.records import read_events  # noqa: E402

MODEL = ROOT / "recipe/configs/models/tiny/config.json"
VOCABULARY = 2000  # small, so that a small model is not all vocabulary
# Smaller and shorter runs are still on a plateau, or learn faster the larger they are: no law holds for them.
WIDTHS, HELD_OUT, RATIOS = (48, 64, 80), 96, (10, 20)
LR_TIMES_WIDTH = 0.2  # between the best of widths 32 and 64 in benchmarks/transfer.py
MICRO_BATCH = 32  # sequences at a time: on a CPU the more the faster


def prepare(corpus: Path, work: Path) -> None:
    """Documents to tokens in `work`, unless they are there."""
    if (work / "data.html").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    write_config(work, "tokenizer", {"vocab_size": VOCABULARY, "reserved_tokens": 8})
    follow(data_steps(corpus.resolve(), work, embedded=False), again="give the same command again, it goes on there")


def model_of(work: Path) -> Path:
    """The tiny model with the vocabulary of the tokens."""
    folder = work / "model"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**load_json(MODEL), "vocab_size": VOCABULARY}, indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def ladder_words(work: Path) -> list[str]:
    """The arguments of launch/ladder.py."""
    words = ["--model", model_of(work), "--tokens", work / "tokens", "--tokenizer", work / "tokenizer", "--output",
             work / "ladder", "--widths", *WIDTHS, "--held-out", HELD_OUT, "--tokens-per-parameter", *RATIOS,
             "--lr-times-width", LR_TIMES_WIDTH, "--cpu-ranks", 1, "--at-once", os.cpu_count() or 1, "--micro-batch", MICRO_BATCH]  # fmt: skip
    return [str(word) for word in words]


def markdown(result: dict[str, Any]) -> str:
    ladder = result["ladder"]
    sources = list(ladder["held_out"]["bits_per_byte"])
    head = ["run", "active", "tokens", *(f"{source}, bits per byte" for source in sources)]
    rows = [_row(run, [f"{run['bits_per_byte'][s]:.4f}" for s in sources]) for run in ladder["runs"]]
    last = ladder["held_out"]
    rows.append(_row(last, [_compared(last, source) for source in sources]))
    trained = f"{len(rows)} runs on a core each, {duration(sum(result['run_s'].values()))} of them together"
    whole = "" if result["seconds"] is None else f", {duration(result['seconds'])} from documents to the fitted law"
    return f"{result['device']}, torch {result['torch']}, {result['date']}: {trained}{whole}.\n\n{markdown_table(head, rows)}"


def run_seconds(ladder: Path, names: Sequence[str]) -> dict[str, float]:
    """From the start of each run's training to its end."""
    seconds = {}
    for name in names:
        events = read_events(ladder / name / "run")
        ends = [event["time"] for event in events if event["event"] == "finished"]
        seconds[name] = round(ends[-1] - events[0]["time"], 1)
    return seconds


def _row(run: dict[str, Any], cells: list[str]) -> list[str]:
    return [run["name"], f"{run['active'] / 1e6:.3g}M", f"{run['tokens'] / 1e6:.3g}M", *cells]


def _compared(run: dict[str, Any], source: str) -> str:
    told, measured = run["prediction"][source]["bits_per_byte"], run["bits_per_byte"][source]
    off = measured / told["value"] - 1
    return f"{measured:.4f}, predicted {told['value']:.4f} ({told['low']:.4f} to {told['high']:.4f}), off by {off:+.1%}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="documents as .jsonl(.gz|.zst) or .parquet, some 60 MB at least")
    parser.add_argument("--work", type=Path, help="folder for the data and the ladder")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    for name in ("corpus", "work"):
        if vars(args)[name] is None:
            raise UserError(f"--{name} is missing; give it")
    if not args.corpus.exists():
        raise UserError(f"--corpus {args.corpus} does not exist; give a file or folder of documents")
    work, started = args.work.resolve(), time.monotonic()
    is_new = not work.exists()
    prepare(args.corpus, work)
    command = [sys.executable, "launch/ladder.py", *ladder_words(work)]
    if code := subprocess.call(command, cwd=ROOT, stdout=sys.stderr):
        raise SystemExit(code)
    folder, ladder = TokenFolder(work / "tokens"), load_json(work / "ladder" / "ladder.json")
    result = {
        **machine(),
        "seconds": round(time.monotonic() - started) if is_new else None,
        "run_s": run_seconds(work / "ladder", [run["name"] for run in (*ladder["runs"], ladder["held_out"])]),
        "data": {"train": folder.sizes("train"), "held_out": folder.sizes("held_out"), "vocabulary": VOCABULARY},
        "ladder": ladder,
    }
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
