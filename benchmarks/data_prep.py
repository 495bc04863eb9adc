#!/usr/bin/env python3
"""Data jobs against what a user would pick instead: CPU seconds end to end on the same input, in the same run.

Every contender reads .jsonl.gz and writes its result to disk, as one process where it can be told so; CPU time is of
it and all its children, the median of --repeats runs. Peers live in an environment of their own (make benchmark-peers).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

from data_prep.documents.reading import document_files, read_documents  # noqa: E402
from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402

PEERS = ROOT / "benchmarks" / "peers"


class Contender:
    """A command that reads {input} and writes below {work}."""

    def __init__(self, name: str, *words: object):
        self.name, self.words = name, [str(word) for word in words]

    def run(self, source: Path, repeats: int) -> dict[str, Any]:
        """CPU seconds (median), largest process in MiB, and the last run's folder."""
        seconds, peak, work = [], 0.0, Path()
        for _ in range(repeats):
            work = Path(tempfile.mkdtemp(prefix="benchmark-"))
            words = [word.format(input=source, work=work) for word in self.words]
            pid = subprocess.Popen(
                words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment()
            )
            message = pid.stderr.read().decode(errors="replace") if pid.stderr else ""
            _, status, usage = os.wait4(pid.pid, 0)
            if status:
                return {"failed": message.strip().splitlines()[-1:] or [f"status {status}"]}
            seconds.append(usage.ru_utime + usage.ru_stime)
            peak = max(peak, usage.ru_maxrss / 1024)
        return {"cpu_s": round(statistics.median(seconds), 2), "runs": repeats, "peak_mib": round(peak), "work": work}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def ours(job: str, *more: object) -> Contender:
    words = ["--input", "{input}", "--output", "{work}/out", "--workers", 1, *more]
    return Contender("ours", sys.executable, ROOT / "data_prep" / f"{job}.py", *words)


def peer(python: Path, name: str, *more: object) -> Contender:
    return Contender(name, python, PEERS / f"{name}.py", "{input}", "{work}", *more)


def dedup(python: Path, args: argparse.Namespace) -> tuple[Path, list[Contender]]:
    return args.input, [ours("dedup"), peer(python, "rensa_dedup"), peer(python, "datatrove_dedup")]


def curation(python: Path, args: argparse.Namespace) -> tuple[Path, list[Contender]]:
    return args.input, [ours("curate"), peer(python, "datatrove_filters")]


def tokenization(python: Path, args: argparse.Namespace) -> tuple[Path, list[Contender]]:
    job = ours("tokenize_corpus", "--tokenizer", args.tokenizer)
    return args.input, [
        job,
        peer(python, "hf_encode", args.tokenizer),
        peer(python, "megatron_preprocess", args.tokenizer),
    ]


def kept_ids(work: Path) -> set[str]:
    if (work / "kept.txt").exists():
        return set((work / "kept.txt").read_text(encoding="utf-8").split("\n")) - {""}
    files = document_files(work / "out" / "documents")
    return {document["id"] for file in files for document in read_documents(file, lambda bad: None)}


def score(contender: Contender, planted: Path) -> dict[str, Any]:
    """What the scoring script of a planted set says of the documents kept."""
    with tempfile.TemporaryDirectory(prefix="benchmark-planted-") as source:
        for path in planted.glob("*.jsonl.gz"):
            (Path(source) / path.name).symlink_to(path.resolve())
        work = contender.run(Path(source), 1)["work"]
    kept = work / "kept-ids.txt"
    kept.write_text("\n".join(sorted(kept_ids(work))), encoding="utf-8")
    done = subprocess.run([sys.executable, planted / "score.py", kept], capture_output=True, text=True, check=True)
    shutil.rmtree(work, ignore_errors=True)
    found = json.loads(done.stdout)
    return {"precision": found["precision"], "recall_J": found["recall_J"]}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Largest process of each job on the input, and on one `--times` as large by repetition with variation."""
    table: dict[str, Any] = {}
    large = Path(tempfile.mkdtemp(prefix="benchmark-large-"))
    size = enlarge(args.input, large / "documents", args.times)
    items = large / "items.jsonl"
    jobs = {
        "curate": [],
        "dedup": [],
        "decontaminate": ["--evaluation", items],
        "tokenize_corpus": ["--tokenizer", args.tokenizer],
    }
    for job, more in jobs.items():
        table[job] = {}
        for name, source in (("small", args.input), ("large", large / "documents")):
            found = Contender(name, sys.executable, ROOT / "data_prep" / f"{job}.py", "--input", "{input}", "--output",
                              "{work}/out", "--workers", 2, *more).run(source, 1)  # fmt: skip
            shutil.rmtree(found.pop("work", ""), ignore_errors=True)
            table[job][name] = found
    shutil.rmtree(large)
    return {"large_text_bytes": size, "jobs": table}


def write_items(file: Path, target: Path) -> None:
    """Evaluation items out of one file, for the decontamination to find."""
    texts = [document["text"][500:700] for document in read_documents(file, lambda bad: None)][:500]
    target.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts), encoding="utf-8")


def enlarge(source: Path, target: Path, times: int) -> int:
    """Copies of the documents, each copy with other ids and every eighth word marked, so that they are no duplicates."""
    import gzip

    size = 0
    target.mkdir()
    write_items(document_files(source)[0], target.parent / "items.jsonl")
    for copy in range(times):
        for number, path in enumerate(document_files(source)):
            name = target / f"{copy:03d}-{number:03d}.jsonl.gz"
            with gzip.open(name, "wt", encoding="utf-8", compresslevel=1) as out:
                for document in read_documents(path, lambda bad: None):
                    words = document["text"].split(" ")
                    words[::8] = [f"{word}{copy}" for word in words[::8]]
                    text = " ".join(words)
                    size += len(text.encode())
                    out.write(
                        json.dumps({**document, "id": f"{copy}/{document['id']}", "text": text}, ensure_ascii=False)
                        + "\n"
                    )
    return size


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| job | contender | CPU s | runs | times ours | MiB | precision, recall at J 0.8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in ("dedup", "curation", "tokenization"):
        for name, found in result[job].items():
            planted = found.get("planted")
            quality = f"{planted['precision']:.3f}, {planted['recall_J']['0.8']:.3f}" if planted else ""
            lines.append(
                f"| {job} | {name} | {found['cpu_s']} | {found['runs']} | {found.get('times_ours', '')} | {found['peak_mib']} | {quality} |"
            )
    megabytes = result["memory"]["large_text_bytes"] / 1e6
    lines += [
        "",
        f"Largest process on {result['text_bytes'] / 1e6:.0f} MB of text and on {megabytes:,.0f} MB, in MiB:",
        "",
        "| job | small | large |",
        "|---|---|---|",
    ]
    for job, found in result["memory"]["jobs"].items():
        lines.append(f"| {job} | {found['small']['peak_mib']} | {found['large']['peak_mib']} |")
    where = result["machine"]
    lines += [
        "",
        f"{where['date']}, {where['cpu']}, Python {where['python']}; one worker of each, medians.",
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return {
        "date": date.today().isoformat(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  make benchmark-peers\n  python benchmarks/data_prep.py --input corpus/ --tokenizer work/tokenizer --output data_prep.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print an earlier result as Markdown, and nothing else"
    )
    parser.add_argument("--input", type=Path, help="folder of .jsonl.gz with id, text, lang (en, zh)")
    parser.add_argument("--tokenizer", type=Path, help="folder written by train_tokenizer.py")
    parser.add_argument("--planted", type=Path, help="folder of .jsonl.gz with a score.py, for the quality of dedup")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python", help="their interpreter")
    parser.add_argument("--repeats", type=positive_int, default=3, help="(default: %(default)s)")
    parser.add_argument("--times", type=positive_int, default=20, help="size of the memory test (default: %(default)s)")
    parser.add_argument("--only", choices=("dedup", "curation", "tokenization", "memory"), action="append")
    parser.add_argument("--output", type=Path, help="write the JSON there; adds to an earlier one of the day")
    args = parser.parse_args(argv)
    if args.table:
        print(table_of(load_json(args.table)))
        return
    if args.input is None or args.tokenizer is None:
        raise UserError("give --input and --tokenizer, or --table")
    if not args.peers.exists():
        raise UserError(f"--peers {args.peers} does not exist; make benchmark-peers installs it")
    for folder in (args.input, args.tokenizer):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give one")
    text_bytes = sum(
        len(d["text"].encode()) for f in document_files(args.input) for d in read_documents(f, lambda bad: None)
    )
    earlier = load_json(args.output) if args.output and args.output.exists() else {}
    if earlier and (earlier["machine"], earlier["text_bytes"]) != (machine(), text_bytes):
        raise UserError(f"--output {args.output} is of another day, machine or input; name a new file")
    result: dict[str, Any] = {**earlier, "machine": machine(), "text_bytes": text_bytes}
    wanted = args.only or ["dedup", "curation", "tokenization", "memory"]
    for suite in (dedup, curation, tokenization):
        if suite.__name__ in wanted:
            result[suite.__name__] = compare(*suite(args.peers, args), args, scored=suite is dedup)
    if "memory" in wanted:
        result["memory"] = memory(args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


def compare(source: Path, contenders: list[Contender], args: argparse.Namespace, scored: bool) -> dict[str, Any]:
    """CPU seconds of each, and how many times ours."""
    table: dict[str, Any] = {}
    for contender in contenders:
        print(f"{contender.name} ...", file=sys.stderr, flush=True)
        found = contender.run(source, args.repeats)
        shutil.rmtree(found.pop("work", ""), ignore_errors=True)
        if args.planted and scored and "failed" not in found:
            found["planted"] = score(contender, args.planted)
        table[contender.name] = found
    for name, found in table.items():
        if name != "ours" and "cpu_s" in found:
            found["times_ours"] = round(found["cpu_s"] / table["ours"]["cpu_s"], 1)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
