#!/usr/bin/env python3
"""How the data jobs grow with the number of parts: CPU seconds, memory of the largest process, growth exponents.

The parts are simulated: a few documents each, from a seed, one in ten a near copy of an earlier one. So what a part
costs beside its text is what is measured. Ranges of shuffles and shards are smaller in proportion (--range-bytes), so
that there are as many for so many parts as there are of real ones. An exponent is log(CPU ratio) / log(ratio of parts)
between two sizes, without the CPU time of one part, which is start-up: 1 is a straight line, 2 is a square.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from benchmarks.data_prep import Contender, machine, write_items  # noqa: E402
from data_prep.documents.reading import Document, write_documents  # noqa: E402
from data_prep.grammars.grammar import GRAMMARS  # noqa: E402
from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402

JOBS = (
    "ingest", "curate", "dedup", "decontaminate", "train_tokenizer", "evaluate_tokenizer", "tokenize_corpus",
)  # fmt: skip
PARTS = (300, 1000, 3000, 16000)
SMALL_VOCABULARY = "vocab_size: 2048\nreserved_tokens: 2\nsample_bytes: 2000000\n"
RANGE_BYTES = 32 * 1024  # a dozen parts' rows; of real parts' band keys, 40 MB each, two or three
# Run as a file, which worker processes import again.
JOB_WITH_SMALL_RANGES = """import data_prep.core.shuffle
from data_prep.{job} import main

data_prep.core.shuffle.PARTITION_BYTES = {range_bytes}
if __name__ == "__main__":
    raise SystemExit(main())
"""
PAIR = (GRAMMARS["en"], GRAMMARS["zh"])
COPIES = 0.1  # share of documents that are near copies
REMEMBERED = 500  # documents that copies are made of


def write_parts(folder: Path, parts: int, documents: int, seed: int) -> None:
    """Parts of so many documents each; the first ones of a larger corpus are those of a smaller one."""
    originals: list[tuple[int, str]] = []
    for part in range(parts):
        rng = random.Random(f"{seed}/{part}")
        rows: list[Document] = []
        for row in range(documents):
            if originals and rng.random() < COPIES:
                language, text = rng.choice(originals)
                text = PAIR[language].near_copy(rng, text)
            else:
                language = rng.randrange(len(PAIR))
                text = PAIR[language].document(rng)
                if len(originals) < REMEMBERED:
                    originals.append((language, text))
            lang = PAIR[language].lang
            rows.append({"id": f"{part}/{row}", "text": text, "lang": lang, "source": f"growth-{lang}"})
        write_documents(folder / f"{part:06d}.jsonl", rows)


def write_settings(work: Path, source: Path, range_bytes: int) -> None:
    """What jobs need beside the parts."""
    for job in JOBS:
        (work / f"small_{job}.py").write_text(JOB_WITH_SMALL_RANGES.format(job=job, range_bytes=range_bytes))
    (work / "tokenize.yaml").write_text(f"max_shard_tokens: {max(1, range_bytes // 4)}\n", encoding="utf-8")
    first = sorted(source.iterdir())[0]
    write_items(first, work / "items.jsonl")
    (work / "tokenizer.yaml").write_text(SMALL_VOCABULARY, encoding="utf-8")


def contender(job: str, work: Path, source: Path, workers: int) -> Contender:
    words: list[object] = [work / f"small_{job}.py", "--output", "{work}/out", "--workers", workers]
    if job == "ingest":
        settings = source.parent / f"{source.name}.yaml"
        files = json.dumps(str(source / "*.jsonl"))
        settings.write_text(
            f"sources:\n  growth: {{files: {files}, lang: en, license: none, expected_tokens: 1.0e+9, tier: 1}}\n"
        )
        words += ["--source", "growth", "--config", settings]
    else:
        words += ["--input", "{input}"]
    if job == "decontaminate":
        words += ["--evaluation", work / "items.jsonl"]
    if job == "train_tokenizer":
        words += ["--config", work / "tokenizer.yaml"]
    if job in ("evaluate_tokenizer", "tokenize_corpus"):
        words += ["--tokenizer", work / "tokenizer"]
    if job == "tokenize_corpus":
        words += ["--config", work / "tokenize.yaml"]
    return Contender(job, sys.executable, *words)


def measure(job: str, work: Path, source: Path, workers: int, repeats: int) -> dict[str, Any]:
    row = contender(job, work, source, workers).run(source, repeats)
    if "failed" in row:
        raise UserError(f"{job} failed on {source}: {' '.join(row['failed'])}")
    output = row.pop("work")
    if job == "train_tokenizer" and not (work / "tokenizer").exists():
        shutil.copytree(output / "out", work / "tokenizer")
    shutil.rmtree(output)
    return row


def exponents(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of each size but the smallest against the one before it; `rows` are by parts, those of one part first.

    A size that costs no more than the start-up has none.
    """
    start, *sizes = sorted(map(int, rows))
    growth = {}
    for small, large in pairwise(sizes):
        before, after = (rows[str(parts)]["cpu_s"] - rows[str(start)]["cpu_s"] for parts in (small, large))
        if before > 0 and after > 0:
            growth[str(large)] = round(math.log(after / before) / math.log(large / small), 2)
    return growth


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    sizes = [parts for parts in result["parts"] if parts > 1]
    heads = " | ".join(f"{parts:,} parts" for parts in sizes)
    lines = [
        "CPU s, growth exponent from the size before, MiB of the largest process:",
        "",
        f"| job | workers | 1 part | {heads} |",
        "|---|---|---|" + "---|" * len(sizes),
    ]
    for row in result["jobs"]:
        cells = [f"{row['sizes']['1']['cpu_s']}, {row['sizes']['1']['peak_mib']} MiB"]
        for parts in map(str, sizes):
            exponent = f", ^{row['exponents'][parts]}" if parts in row["exponents"] else ""
            cells.append(f"{row['sizes'][parts]['cpu_s']}{exponent}, {row['sizes'][parts]['peak_mib']} MiB")
        lines.append(f"| {row['job']} | {row['workers']} | {' | '.join(cells)} |")
    where = result["machine"]
    lines += [
        "",
        f"{result['documents_per_part']} documents a part, ranges of {result['range_bytes']:,} bytes; "
        f"{where['date']}, {where['cpu']}, Python {where['python']}.",
    ]
    return "\n".join(lines)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python benchmarks/data_growth.py --only dedup --parts 300 1000 3000 --workers 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", type=Path, metavar="JSON", help="print an earlier result, and nothing else")
    parser.add_argument("--only", choices=JOBS, action="append", help="a job; may be repeated (default: all)")
    parser.add_argument("--parts", type=positive_int, nargs="+", default=list(PARTS), help="(default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, nargs="+", default=[1, 2], help="(default: %(default)s)")
    parser.add_argument("--documents", type=positive_int, default=3, help="of a part (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=positive_int, default=1, help="runs, of which the median (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the documents (default: %(default)s)")
    parser.add_argument(
        "--range-bytes", type=positive_int, default=RANGE_BYTES, help="of a shuffle's range (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="write the JSON there")
    args = parser.parse_args(argv)
    if args.table:
        print(table_of(load_json(args.table)))
        return
    if args.output and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}; make it first")
    with tempfile.TemporaryDirectory(prefix="benchmark-growth-") as folder:
        result = {"machine": machine(), "documents_per_part": args.documents, "range_bytes": args.range_bytes}
        result.update(grow(Path(folder), args))
    print(table_of(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def grow(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    sizes = sorted({1, *args.parts})
    for parts in sizes:
        write_parts(work / f"parts-{parts}", parts, args.documents, args.seed)
    write_settings(work, work / "parts-1", args.range_bytes)
    jobs = [job for job in JOBS if not args.only or job in args.only]
    if not {"evaluate_tokenizer", "tokenize_corpus"}.isdisjoint(jobs):
        measure("train_tokenizer", work, work / f"parts-{min(args.parts)}", 1, 1)
    rows = []
    for job in jobs:
        for workers in args.workers:
            measured: dict[str, Any] = {}
            for parts in sizes:
                print(f"{job}, {workers} workers, {parts:,} parts ...", file=sys.stderr, flush=True)
                measured[str(parts)] = measure(job, work, work / f"parts-{parts}", workers, args.repeats)
            rows.append({"job": job, "workers": workers, "sizes": measured, "exponents": exponents(measured)})
    return {"parts": sizes, "jobs": rows}


if __name__ == "__main__":
    raise SystemExit(main())
