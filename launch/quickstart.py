#!/usr/bin/env python3
"""The whole road on one machine: documents to a trained, evaluated, exported model, each step by its own command."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.documents.reading import read_documents
from launch.cluster.hosts import deepspeed_launcher, free_port
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.strict import load_json
from recipe.data.mixture import CYCLE, plan_mixture
from recipe.data.token_folder import Source, TokenFolder
from recipe.run.folder import load_run_folder
from recipe.run.records import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RUN_CONFIG, DS_CONFIG, RANKS = "recipe/configs/runs/quickstart.yaml", "ds_configs/cpu_2.json", 2
VOCAB_SIZE = 4096  # of recipe/configs/models/tiny
HELD_OUT = 0.02


def command(*arguments: object) -> None:
    """Print and run one command of the road in the project's folder; stop with its exit code if it fails."""
    words = [str(a) for a in arguments]
    print(f"\n$ {shlex.join(words)}", flush=True)
    # On CPU also where there are GPUs: the shipped ds_config is for two CPU ranks, which share the cores.
    threads = max(1, (os.cpu_count() or 1) // RANKS)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    code = subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def python(script: str, *arguments: object) -> None:
    command(sys.executable, script, *arguments)


def deepspeed(script: str, *arguments: object) -> None:
    command(deepspeed_launcher(), "--quiet", "--num_gpus", RANKS, "--master_port", free_port(), script, *arguments)


def unigram_entropy(sources: Iterable[Source], weights: dict[str, float]) -> float:
    """Entropy in nats per token of the mixture's token frequencies: the loss of a model that knows these and nothing else."""
    mixed = np.zeros(0)
    for source in sources:
        counts = np.zeros(0)
        for shard in source.shards:
            counts = _sum(counts, np.bincount(shard.tokens).astype(np.float64))
        mixed = _sum(mixed, weights[source.name] * counts / counts.sum())
    p = mixed[mixed > 0] / mixed.sum()
    return float(-(p * np.log(p)).sum())


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = max(a.size, b.size)
    return np.pad(a, (0, size - a.size)) + np.pad(b, (0, size - b.size))


def write_configs(work: Path) -> None:
    """The shipped data configurations, with the sizes that fit the tiny model."""
    work.mkdir(parents=True, exist_ok=True)
    for name, changes in (
        ("tokenizer", {"vocab_size": VOCAB_SIZE, "reserved_tokens": 8}),
        ("tokenize", {"held_out": HELD_OUT}),
    ):
        shipped = yaml.safe_load((ROOT / f"data_prep/configs/{name}.yaml").read_text(encoding="utf-8"))
        (work / f"{name}.yaml").write_text(yaml.safe_dump({**shipped, **changes}, allow_unicode=True), encoding="utf-8")


def prompts(work: Path) -> list[str]:
    """The first words of one held-out document of each source."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    sources = TokenFolder(work / "tokens").sources("held_out")
    return [tokenizer.decode(next(source.shards[0].documents())[:3].tolist()).strip() for source in sources]


def caught_defects(raw: Path, work: Path) -> dict[str, tuple[int, int]]:
    """Planted defects of the embedded corpus by kind: how many, and how many are gone. Either of a pair may stay."""
    planted = load_json(raw / "planted.json")
    kept = {
        document["id"]
        for file in sorted((work / "deduped" / "documents").iterdir())
        for document in read_documents(file, lambda bad: None)
    }
    tally: dict[str, tuple[int, int]] = {}
    for identity, plant in planted.items():
        gone = identity not in kept or ("of" in plant and plant["of"] not in kept)
        number, caught = tally.get(plant["kind"], (0, 0))
        tally[plant["kind"]] = (number + 1, caught + gone)
    return tally


def summary(raw: Path, work: Path, embedded: bool, seconds: float) -> str:
    """What happened, from what the stages and the run wrote."""
    curated, deduped, tokenized = (
        load_json(work / name / "manifest.json") for name in ("curated", "deduped", "tokens")
    )
    steps = read_metrics(work / "run")
    evaluation = load_json(work / "run" / "evaluation.json")["sources"]
    dropped = {**curated["counts"]["dropped"], **deduped["counts"]["dropped"]}
    sources = TokenFolder(work / "tokens").sources("train")
    run, _ = load_run_folder(work / "run")
    sizes = {source.name: float(source.num_tokens) for source in sources}
    mixture = plan_mixture(sizes, run.data.mixture, run.schedule.total_tokens, CYCLE * run.data.seq_length)
    entropy = unigram_entropy(sources, mixture[0].weights)
    rates = sorted(step["tokens_per_s"] for step in steps)
    lines: list[tuple[str, Any]] = [
        ("documents", f"{curated['counts']['in']:,} in, {deduped['counts']['out']:,} kept"),
        (
            "dropped",
            ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items(), key=lambda x: -x[1])) or "none",
        ),
    ]
    if embedded:
        found = caught_defects(raw, work).items()
        lines.append(
            ("planted, caught", ", ".join(f"{kind} {caught}/{number}" for kind, (number, caught) in sorted(found)))
        )
    for source, total in tokenized["counts"]["totals"]["train"].items():
        lines.append((f"tokens {source}", f"{total['tokens']:,} for training"))
    lines += [
        (
            "loss",
            f"{steps[0]['loss']:.4f} at step {steps[0]['step']}, {steps[-1]['loss']:.4f} at step {steps[-1]['step']}",
        ),
        (
            "unigram entropy",
            f"{entropy:.4f} nats/token, the loss that the token frequencies of the mixture alone would reach",
        ),
        *(
            (f"held-out {name}", f"{r['bits_per_byte']:.4f} bits/byte, loss {r['loss']:.4f}")
            for name, r in evaluation.items()
        ),
        ("throughput", f"{rates[len(rates) // 2]:,.0f} tokens/s"),
        ("expert load", f"max/mean {steps[-1]['expert_load_max_over_mean']:.2f} in the worst layer at the end"),
        ("data report", work / "data.html"),
        ("run folder", work / "run"),
        ("TensorBoard", f"tensorboard --logdir {work / 'run' / 'tensorboard'}"),
        ("model", work / "export"),
        ("time", f"{seconds:.0f} s"),
    ]
    return "\n".join(f"  {name:<16} {value}" for name, value in lines)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  make quickstart CORPUS=my/documents",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus", type=Path, help="jsonl or parquet documents (default: the embedded synthetic corpus)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work/quickstart"), help="folder for all results (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the run config"
    )
    args = parser.parse_args(argv)
    work, started = args.work.resolve(), time.monotonic()
    if args.corpus is not None and not args.corpus.exists():
        raise UserError(
            f"CORPUS {args.corpus} does not exist; give a file or folder of .jsonl(.gz|.zst) or .parquet documents"
        )
    _start_clean(work)
    raw = args.corpus.resolve() if args.corpus else work / "raw"
    write_configs(work)
    if args.corpus is None:
        python("data_prep/synthetic_corpus.py", "--output", raw)
    python("data_prep/curate.py", "--input", raw, "--output", work / "curated")
    python("data_prep/dedup.py", "--input", work / "curated", "--output", work / "deduped")
    python(
        "data_prep/train_tokenizer.py",
        "--input",
        work / "deduped",
        "--output",
        work / "tokenizer",
        "--config",
        work / "tokenizer.yaml",
    )
    python("data_prep/tokenize_corpus.py", "--input", work / "deduped", "--tokenizer", work / "tokenizer",
           "--output", work / "tokens", "--config", work / "tokenize.yaml")  # fmt: skip
    python("data_prep/report.py", *(work / name for name in ("curated", "deduped", "tokens")),
           "--output", work / "data.html")  # fmt: skip
    overrides = [
        f"run_dir={work / 'run'}",
        f"tokenizer={work / 'tokenizer'}",
        f"data.tokens={work / 'tokens'}",
        *args.set,
    ]
    deepspeed("recipe/train.py", "--config", RUN_CONFIG, "--deepspeed_config", DS_CONFIG,
              *(word for override in overrides for word in ("--set", override)))  # fmt: skip
    deepspeed("recipe/evaluate_model.py", "held-out", "--run", work / "run")
    deepspeed("recipe/export.py", "--run", work / "run", "--output", work / "export")
    python("launch/generate.py", "--model", work / "export", *(word for p in prompts(work) for word in ("--prompt", p)))
    print(f"\nsummary\n{summary(raw, work, args.corpus is None, time.monotonic() - started)}")


def _start_clean(work: Path) -> None:
    """Remove what an earlier quickstart left in `work`, and nothing else."""
    marker = work / "quickstart.json"
    if marker.exists():
        shutil.rmtree(work)
    elif work.exists() and any(work.iterdir()):
        raise UserError(f"--work {work} holds files of something else; choose another folder")
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"made_by": "launch/quickstart.py"}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
