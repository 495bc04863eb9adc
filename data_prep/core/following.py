"""The command that usually follows a data job, with the paths of this run."""

from __future__ import annotations

import shlex
from pathlib import Path

# Stage -> the job that usually reads its output, and the name of that job's folder beside it.
AFTER = {
    "synthetic_corpus": ("curate", "curated"),
    "ingest": ("curate", "curated"),
    "curate": ("dedup", "deduped"),
    "dedup": ("train_tokenizer", "tokenizer"),
    "decontaminate": ("train_tokenizer", "tokenizer"),
}


def following_command(stage: str, output: Path, source: Path | None = None, tokenizer: Path | None = None) -> str:
    """Such as `python data_prep/dedup.py --input work/curated --output work/deduped`; empty where none follows.

    Args:
        source: what the stage has read.
        tokenizer: that it has read or measured.
    """
    beside, words = output.parent, list[str | Path]()
    if stage in AFTER:
        job, name = AFTER[stage]
        words = [f"data_prep/{job}.py", "--input", output, "--output", beside / name]
    elif stage in ("train_tokenizer", "evaluate_tokenizer") and source is not None:
        made = output if tokenizer is None else tokenizer
        words = ["data_prep/tokenize_corpus.py", "--input", source, "--tokenizer", made, "--output", beside / "tokens"]
    elif stage in ("tokenize", "import_shards", "pack_sequences"):
        stages = [source, output] if source is not None and (source / "manifest.json").exists() else [output]
        words = ["data_prep/report.py", *stages, "--output", beside / "data.html"]
    return shlex.join(["python", *map(str, words)]) if words else ""


def is_driven(output: Path) -> bool:
    """Whether launch/quickstart.py runs the jobs whose folders lie here, and what follows after each."""
    return (output.parent / "quickstart.json").exists()
