"""Rows of published throughput, read into what the planner can predict, or into the reason why it cannot."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.hardware import ACCELERATORS, Accelerator, Cluster, network_bytes_per_s
from recipe.planner.architecture import Architecture
from recipe.planner.search.strategies import Achieved, Strategy, estimate
from recipe.planner.tables.published_models import GPT_VOCABULARY, dense_gpt, moe_of_size, published_model
from recipe.planner.tables.published_strategy import (
    NotStated,
    is_before_flash,
    micro_batch_of,
    number,
    optional,
    said_of,
    sequences_of,
    strategy_of,
)
from recipe.planner.timing.timeline import CONSERVATIVE, EXPECTED, OPTIMISTIC, Assumptions

COLUMNS = (
    "source", "kind", "model", "active_B", "total_B", "layers", "hidden", "experts", "topk", "seq", "gpus", "gpu",
    "precision", "parallel", "gbs_seqs", "mbs", "recompute", "step_s", "tok_s_gpu", "tflops_gpu", "mfu_pct", "note",
)  # fmt: skip
COUNTS = ("layers", "hidden", "experts", "topk", "seq", "gpus", "gbs_seqs", "mbs")
DEFAULT_SEQ = 4096
IMBALANCE = 1.05  # where a source does not say whether it forced balance, as benchmarks do; 1 where it did


@dataclass(frozen=True)
class Constants:
    """What published runs decide of the planner's constants; those it ships with where nothing else is said."""

    run_efficiency: Mapping[str, float] = field(default_factory=dict)  # by generation of GPUs
    achieved: Achieved = field(default_factory=Achieved)


SHIPPED = Constants()


@dataclass(frozen=True)
class Run:
    """A published run that states enough to be predicted."""

    row: dict[str, str]
    quantity: str  # tok_s_gpu, tflops_gpu or mfu_pct
    published: float
    model: Architecture
    cluster: Cluster
    strategy: Strategy
    seq_length: int
    sequences: int
    micro_batch: int
    balanced: bool  # the routing was forced to be
    assumed: tuple[str, ...]  # what the row does not state

    def predicted(self, constants: Constants = SHIPPED, under: Assumptions = EXPECTED) -> float:
        """In the unit that was published."""
        gpu, achieved = self.cluster.accelerator, constants.achieved
        imbalance = 1.0 if self.balanced else max(1.0, IMBALANCE * under.imbalance / EXPECTED.imbalance)
        step = estimate(
            self.model, self.cluster, self.strategy, seq_length=self.seq_length, sequences=self.sequences,
            micro_batch=self.micro_batch, imbalance=imbalance,
            compute=constants.run_efficiency.get(gpu.generation, gpu.run_efficiency) * under.compute / EXPECTED.compute,
            achieved=replace(achieved, network=achieved.network * under.network_efficiency / EXPECTED.network_efficiency),
        )  # fmt: skip
        rate = step.tokens_per_s_per_gpu / (1 + under.straggler * math.log2(self.cluster.nodes))
        return rate * self._published_per_token()

    def _published_per_token(self) -> float:
        if self.quantity == "tok_s_gpu":
            return 1.0
        # FLOPs of before are those of arXiv 2104.04473 eq. 3: attention whole, recompute counted.
        old = is_before_flash(self.row)
        flops = self.model.flops_per_token(self.seq_length, causal_half=not old)
        if self.quantity == "mfu_pct":
            return 100 * flops / self.cluster.accelerator.bf16_flops
        return flops * (4 / 3 if old and self.strategy.recompute == "full" else 1.0) / 1e12


@dataclass(frozen=True)
class Prediction:
    """A row with what was predicted for it."""

    run: Run
    predicted: float
    low: float  # under the plan's conservative assumptions
    high: float  # under its optimistic ones

    @property
    def row(self) -> dict[str, str]:
        return self.run.row

    @property
    def published(self) -> float:
        return self.run.published

    @property
    def assumed(self) -> tuple[str, ...]:
        return self.run.assumed

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1.0

    @property
    def inside(self) -> bool:
        """Whether the published value is within the range."""
        return self.low <= self.published <= self.high


@dataclass(frozen=True)
class Excluded:
    row: dict[str, str]
    reason: str


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with these columns.

    Raises:
        UserError: no such file, or columns are missing.
    """
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--rows {path} cannot be read: {error}") from None
    if missing:
        raise UserError(f"--rows {path} lacks the columns {', '.join(missing)}; give a file with those of the table")
    return [{name: (value or "").strip() for name, value in row.items() if name} for row in rows]


def predict(row: dict[str, str], constants: Constants = SHIPPED) -> Prediction | Excluded:
    """What the planner says of a published row."""
    run = run_of(row)
    return run if isinstance(run, Excluded) else prediction(run, constants)


def prediction(run: Run, constants: Constants = SHIPPED) -> Prediction:
    """With its range."""
    low, high = (run.predicted(constants, under) for under in (CONSERVATIVE, OPTIMISTIC))
    return Prediction(run, run.predicted(constants), low, high)


def run_of(row: dict[str, str]) -> Run | Excluded:
    """The run that a row states, or why it cannot be predicted."""
    try:
        return _run(row)
    except NotStated as reason:
        return Excluded(row, str(reason))


def _run(row: dict[str, str]) -> Run:
    for name in COUNTS:
        if row[name] and not re.fullmatch(r"0*[1-9]\d*(\.0+)?", row[name]):
            raise NotStated(f"{name} is '{row[name]}'")
    quantity, published = _result(row)
    _refuse_special(row)
    model = _model(row)
    gpu = _gpu(row["gpu"])
    gpus = int(number(row, "gpus", "the number of GPUs is not stated"))
    assumed: list[str] = []
    seq = optional(row, "seq")
    if seq is None:
        seq = DEFAULT_SEQ
        assumed.append(f"sequences of {DEFAULT_SEQ:,}")
    strategy = strategy_of(row, model, gpus, assumed)
    sequences = sequences_of(row, seq, gpus, strategy, assumed)
    micro_batch = micro_batch_of(row, assumed)
    balanced = bool(re.search(r"balanced gate|forced balance", row["source"] + row["note"]))
    cluster = Cluster(gpu, gpus, _network(row, gpu))
    return Run(
        row, quantity, published, model, cluster, strategy, int(seq), int(sequences), micro_batch, balanced, tuple(assumed)
    )  # fmt: skip


def _result(row: dict[str, str]) -> tuple[str, float]:
    for name in ("tok_s_gpu", "mfu_pct", "tflops_gpu"):
        stated = optional(row, name)
        if stated is not None:
            return name, stated
    step_s, sequences, seq, gpus = (optional(row, name) for name in ("step_s", "gbs_seqs", "seq", "gpus"))
    if step_s and sequences and seq and gpus:
        return "tok_s_gpu", sequences * seq / step_s / gpus
    raise NotStated("no tokens/s, MFU or FLOP/s")


def _refuse_special(row: dict[str, str]) -> None:
    text = said_of(row)
    if "fp8" in text and "bf16" not in row["precision"].lower():
        raise NotStated("fp8 is not modelled")
    if "imbalance sensitivity" in text:
        raise NotStated("padded to a capacity to show what imbalance costs")
    if "per-expert loop" in text:
        raise NotStated("a loop over experts in Python is not modelled")
    if "offload" in text:
        raise NotStated("offloading to the host is not modelled")
    if "untuned" in text:
        raise NotStated("untuned by its own account")


def _model(row: dict[str, str]) -> Architecture:
    known = published_model(row["model"])
    if known is not None:
        return known[0]
    if row["kind"] == "dense" and row["hidden"] and row["total_B"]:
        layers = int(float(row["layers"])) if row["layers"] else None
        vocab = GPT_VOCABULARY
        made = dense_gpt(int(float(row["hidden"])), number(row, "total_B", "") * 1e9, layers, vocab)
        if made is not None:
            return made
    if all(row[name] for name in ("layers", "hidden", "experts", "topk", "total_B")):
        hidden, layers, experts, top_k = (int(float(row[name])) for name in ("hidden", "layers", "experts", "topk"))
        return moe_of_size(hidden, layers, experts, top_k, number(row, "total_B", "") * 1e9)
    raise NotStated("the model's shape is neither stated nor in the table of published configs")


def _gpu(text: str) -> Accelerator:
    names = [
        ("A100-40", "a100-40gb"), ("A100", "a100-80gb"), ("A800", "a800"), ("H800", "h800"),
        ("H100", "h100"), ("H200", "h200"), ("B200", "b200"),
    ]  # fmt: skip
    places = [(text.find(part), name) for part, name in names if part in text]
    if not places:
        raise NotStated(f"the GPU '{text}' is not known")
    _, name = min(places)
    return next(a for a in ACCELERATORS if a.name == name)


def _network(row: dict[str, str], gpu: Accelerator) -> float:
    text = row["gpu"]
    if match := re.search(r"(\d+)x\D{0,4}(\d+) ?Gb", text):
        return network_bytes_per_s(f"{match[1]}x{match[2]}g")
    if match := re.search(r"(\d+) ?Gb IB", text):
        return network_bytes_per_s(f"8x{match[1]}g")
    if "bigscience" in row["source"]:
        return network_bytes_per_s("4x100g")  # Jean Zay, as the source's row of BLOOM-176B says
    return network_bytes_per_s(gpu.network)
