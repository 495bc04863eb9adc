"""What a quickstart made, from what its stages and its run wrote: numbers, pages, and commands to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents.reading import read_documents
from recipe.base.strict import load_json
from recipe.base.tables import duration
from recipe.data.mixture import PhaseData, plan_mixture
from recipe.data.token_folder import Source, TokenFolder
from recipe.run.folder import load_run_folder
from recipe.run.records import read_metrics

NAME_WIDTH = 17


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
    """What happened: the data, then the run, then where all of it is."""
    lines = [*_of_the_data(raw, work, embedded), *_of_the_run(work), ("time", duration(seconds))]
    return "\n".join(f"  {name:<{NAME_WIDTH}} {value}" for name, value in lines)


def _of_the_data(raw: Path, work: Path, embedded: bool) -> list[tuple[str, Any]]:
    curated, deduped, tokenized = (
        load_json(work / name / "manifest.json") for name in ("curated", "deduped", "tokens")
    )
    dropped = {**curated["counts"]["dropped"], **deduped["counts"]["dropped"]}
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items(), key=lambda x: -x[1]))
    lines = [
        ("documents", f"{curated['counts']['in']:,} in, {deduped['counts']['out']:,} kept"),
        ("dropped", reasons or "none"),
    ]
    if embedded:
        caught = sorted(caught_defects(raw, work).items())
        lines.append(("planted, caught", ", ".join(f"{kind} {gone}/{number}" for kind, (number, gone) in caught)))
    for source, total in tokenized["counts"]["totals"]["train"].items():
        lines.append((f"tokens {source}", f"{total['tokens']:,} for training"))
    return lines


def _of_the_run(work: Path) -> list[tuple[str, Any]]:
    steps = read_metrics(work / "run")
    first, last = steps[0], steps[-1]
    evaluation = load_json(work / "run" / "evaluation.json")["sources"]
    rates = sorted(step["tokens_per_s"] for step in steps)
    return [
        ("loss", f"{first['loss']:.4f} at step {first['step']}, {last['loss']:.4f} at step {last['step']}"),
        (
            "unigram entropy",
            f"{_entropy_of_the_mixture(work):.4f} nats/token, the loss of a model that knows the frequencies of tokens and "
            "nothing else",
        ),
        *(
            (f"held-out {name}", f"{r['bits_per_byte']:.4f} bits/byte, loss {r['loss']:.4f}")
            for name, r in evaluation.items()
        ),
        ("throughput", f"{rates[len(rates) // 2]:,.0f} tokens/s"),
        ("expert load", f"max/mean {last['expert_load_max_over_mean']:.2f} in the worst layer at the end"),
        ("page of the data", (work / "data.html").as_uri()),
        ("page of the run", (work / "run" / "report.html").as_uri()),
        ("run folder", work / "run"),
        ("model", f"{work / 'export'} (HuggingFace folder)"),
    ]


def _entropy_of_the_mixture(work: Path) -> float:
    run, _ = load_run_folder(work / "run")
    sources = TokenFolder(work / "tokens").sources("train")
    sizes = {source.name: float(source.num_tokens) for source in sources}
    data = PhaseData(run.data.mixture, run.data.seq_length, run.schedule.total_tokens, str(work / "tokens"), sizes)
    ((first, *_),) = plan_mixture([data])
    return unigram_entropy(sources, first.weights)


def next_commands(root: Path, work: Path, prompt: str, embedded: bool) -> str:
    """Commands to try, with the folders of this quickstart, as they are typed in the project's folder."""
    shown = lambda path: shlex.quote(os.path.relpath(path, root) if path.is_relative_to(root) else str(path))  # noqa: E731
    commands = [
        ("generate text", f"moe-generate --model {shown(work / 'export')} --prompt {shlex.quote(prompt)}"),
        ("see its curves", f"tensorboard --logdir {shown(work / 'run' / 'tensorboard')}"),
        (
            "plan a cluster",
            "moe-plan --model recipe/configs/models/30b-a3b --ds-config ds_configs/a100_256.json",
        ),
    ]
    if embedded:
        commands.append(("train on your text", "make quickstart CORPUS=FOLDER (.jsonl or .parquet documents)"))
    width = max(len(name) for name, _ in commands)
    first = f"try next, in {root}, after `source launch/env.sh` (bash or zsh):"
    return "\n".join([first, *(f"  {name:<{width}}  {text}" for name, text in commands)])
