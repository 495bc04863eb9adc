"""The quality classifier on the labelled documents: learnt from the `dev` rows, compared with the labels of the `test` rows.

Beside it what a user would take instead, each in an environment of its own: fastText, and scikit-learn's hashed n-grams
with logistic regression. All see the same texts, on one thread. The threshold is 0.5; classes weigh the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.core.command import CONFIGS
from data_prep.quality.agreement import agreement
from data_prep.quality.model import Classifier, QualityModel
from data_prep.quality.settings import TrainQualityConfig
from data_prep.quality.training import features_of, train
from recipe.base.strict import load_yaml, strict_model

ROOT = Path(__file__).resolve().parent.parent.parent
LABELLED, PEERS = ROOT / "benchmarks" / "labelled", ROOT / "benchmarks" / "peers"
CONTENDERS = ("fasttext_quality", "sklearn_quality")
THRESHOLD = 0.5
TIMED_BYTES = 2_000_000  # of text at least, that a rate is measured on
Row = dict[str, Any]


def measure(peers: Path, labelled: Path = LABELLED, repeats: int = 3) -> dict[str, Any]:
    """By language and contender: agreement with the test rows, seconds of training, MB of text a CPU second.

    Args:
        peers: the interpreter that has the other contenders; one that is not installed has `missing` in place of numbers.
        labelled: folder of the labelled documents, a file a language.
        repeats: of the timing, whose median is taken.
    """
    rows = {path.stem: read_rows(path) for path in sorted(labelled.glob("??.jsonl"))}
    return {
        language: {
            "learnt_from": len(of_split(rows[language], "dev")),
            "ours": ours(language, rows[language], repeats),
            **{name: peer(peers, name, rows[language], repeats) for name in CONTENDERS},
        }
        for language in rows
    }


def read_rows(path: Path) -> list[Row]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def of_split(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


def ours(language: str, rows: list[Row], repeats: int) -> dict[str, Any]:
    path = CONFIGS / "train_quality.yaml"
    config = strict_model(TrainQualityConfig, load_yaml(path), path)
    learnt, counter = of_split(rows, "dev"), config.ngrams.counter()
    start = time.process_time()
    documents = [features_of(counter, row["text"]) for row in learnt]
    good = [row["keep"] for row in learnt]
    linear = train(documents, good, 1 << config.ngrams.bits, config.epochs, config.learning_rate)
    train_s = time.process_time() - start
    model = QualityModel(config.ngrams, {language: Classifier(linear.weights, linear.bias, THRESHOLD)})
    texts = [row["text"] for row in of_split(rows, "test")]
    scores = [model.score(text, language) for text in texts]
    timed = texts * (TIMED_BYTES // sum(len(text.encode()) for text in texts) + 1)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        for text in timed:
            model.score(text, language)
        rates.append(sum(len(text.encode()) for text in timed) / 1e6 / (time.process_time() - start))
    return result(scores, rows, train_s, statistics.median(rates))


def peer(python: Path, name: str, rows: list[Row], repeats: int) -> dict[str, Any]:
    """What `peers/NAME.py` makes of the rows, whose last printed line is its scores and times."""
    if not python.exists():
        return {"missing": f"{python} does not exist; make benchmark-peers"}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words = [str(python), str(PEERS / f"{name}.py"), str(source), str(TIMED_BYTES), str(repeats)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    told = json.loads(done.stdout.splitlines()[-1])
    return result(told["scores"], rows, told["train_s"], told["mb_a_s"])


def result(scores: list[float], rows: list[Row], train_s: float, rate: float) -> dict[str, Any]:
    good = np.array([row["keep"] for row in of_split(rows, "test")])
    measured = agreement(np.array(scores), good, THRESHOLD)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in measured.items()}
    return {**rounded, "train_s": round(train_s, 2), "mb_a_s": round(rate, 1)}


def table(measured: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "| language | classifier | learnt from | tested on | accuracy | precision | recall | F1 | AUC | training, CPU s | MB/s |",
        "| -- | -- | -- | -- | -- | -- | -- | -- | -- | -- | -- |",
    ]
    for language, contenders in measured.items():
        for name in ("ours", *CONTENDERS):
            found = contenders[name]
            start = f"| {language} | {name} | {contenders['learnt_from']} |"
            if "missing" in found:
                lines.append(f"{start} not measured: {found['missing']} |" + " |" * 7)
                continue
            numbers = [
                found["documents"],
                *(_three(found[key]) for key in ("accuracy", "precision", "recall", "f1", "auc")),
            ]
            lines.append(f"{start} " + " | ".join(map(str, [*numbers, found["train_s"], found["mb_a_s"]])) + " |")
    return "\n".join(lines)


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
