"""Rows of published throughput, read into what the planner can predict, or into the reason why it cannot."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from recipe.base.errors import UserError
from recipe.base.hardware import ACCELERATORS, Accelerator, Cluster, network_bytes_per_s
from recipe.planner.architecture import Architecture
from recipe.planner.search.strategies import OVERLAPPED_EXCHANGE, Strategy, estimate
from recipe.planner.tables.published_models import GPT_VOCABULARY, dense_gpt, moe_of_size, published_model

COLUMNS = (
    "source", "kind", "model", "active_B", "total_B", "layers", "hidden", "experts", "topk", "seq", "gpus", "gpu",
    "precision", "parallel", "gbs_seqs", "mbs", "recompute", "step_s", "tok_s_gpu", "tflops_gpu", "mfu_pct", "note",
)  # fmt: skip
COUNTS = ("layers", "hidden", "experts", "topk", "seq", "gpus", "gbs_seqs", "mbs")
DEFAULT_SEQ = 4096
IMBALANCE = 1.05  # where a source does not say whether it forced balance, as benchmarks do; 1 where it did


@dataclass(frozen=True)
class Prediction:
    """A row with what was predicted for it."""

    row: dict[str, str]
    quantity: str  # tok_s_gpu, tflops_gpu or mfu_pct
    published: float
    predicted: float
    assumed: tuple[str, ...]  # what the row does not state

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1.0


@dataclass(frozen=True)
class Excluded:
    row: dict[str, str]
    reason: str


class _NotStated(Exception):
    """A row does not state enough, or states what the planner has no model of."""


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


def predict(row: dict[str, str]) -> Prediction | Excluded:
    """What the planner says of a published row."""
    try:
        return _predict(row)
    except _NotStated as reason:
        return Excluded(row, str(reason))


def _predict(row: dict[str, str]) -> Prediction:
    for name in COUNTS:
        if row[name] and not re.fullmatch(r"0*[1-9]\d*(\.0+)?", row[name]):
            raise _NotStated(f"{name} is '{row[name]}'")
    quantity, published = _result(row)
    _refuse_special(row)
    model = _model(row)
    gpu = _gpu(row["gpu"])
    gpus = _number(row, "gpus", "the number of GPUs is not stated")
    assumed: list[str] = []
    seq = _optional(row, "seq")
    if seq is None:
        seq = DEFAULT_SEQ
        assumed.append(f"sequences of {DEFAULT_SEQ:,}")
    strategy = _strategy(row, model, int(gpus), assumed)
    sequences = _sequences(row, seq, gpus, strategy, assumed)
    micro_batch = _micro_batch(row, assumed)
    cluster = Cluster(gpu, int(gpus), _network(row, gpu))
    balanced = re.search(r"balanced gate|forced balance", row["source"] + row["note"])
    found = estimate(
        model, cluster, strategy, seq_length=int(seq), sequences=int(sequences), micro_batch=micro_batch,
        imbalance=1.0 if balanced else IMBALANCE, compute=gpu.run_efficiency,
    )  # fmt: skip
    old = _is_before_flash(row)  # whose FLOPs are those of arXiv 2104.04473 eq. 3: attention whole, recompute counted
    flops = found.tokens_per_s_per_gpu * model.flops_per_token(int(seq), causal_half=not old)
    if old and quantity == "tflops_gpu" and strategy.recompute == "full":
        flops *= 4 / 3
    by_quantity = {
        "tok_s_gpu": found.tokens_per_s_per_gpu,
        "tflops_gpu": flops / 1e12,
        "mfu_pct": 100 * flops / gpu.bf16_flops,
    }
    return Prediction(row, quantity, published, by_quantity[quantity], tuple(assumed))


def _result(row: dict[str, str]) -> tuple[str, float]:
    for name in ("tok_s_gpu", "mfu_pct", "tflops_gpu"):
        stated = _optional(row, name)
        if stated is not None:
            return name, stated
    step_s, sequences, seq, gpus = (_optional(row, name) for name in ("step_s", "gbs_seqs", "seq", "gpus"))
    if step_s and sequences and seq and gpus:
        return "tok_s_gpu", sequences * seq / step_s / gpus
    raise _NotStated("no tokens/s, MFU or FLOP/s")


def _refuse_special(row: dict[str, str]) -> None:
    text = f"{row['parallel']} {row['precision']} {row['note']}".lower()
    if "fp8" in text and "bf16" not in row["precision"].lower():
        raise _NotStated("fp8 is not modelled")
    if "imbalance sensitivity" in text:
        raise _NotStated("padded to a capacity to show what imbalance costs")
    if "per-expert loop" in text:
        raise _NotStated("a loop over experts in Python is not modelled")
    if "untuned" in text:
        raise _NotStated("untuned by its own account")


def _model(row: dict[str, str]) -> Architecture:
    known = published_model(row["model"])
    if known is not None:
        return known[0]
    if row["kind"] == "dense" and row["hidden"] and row["total_B"]:
        layers = int(float(row["layers"])) if row["layers"] else None
        vocab = GPT_VOCABULARY
        made = dense_gpt(int(float(row["hidden"])), _number(row, "total_B", "") * 1e9, layers, vocab)
        if made is not None:
            return made
    if all(row[name] for name in ("layers", "hidden", "experts", "topk", "total_B")):
        hidden, layers, experts, top_k = (int(float(row[name])) for name in ("hidden", "layers", "experts", "topk"))
        return moe_of_size(hidden, layers, experts, top_k, _number(row, "total_B", "") * 1e9)
    raise _NotStated("the model's shape is neither stated nor in the table of published configs")


def _gpu(text: str) -> Accelerator:
    names = [
        ("A100-40", "a100-40gb"), ("A100", "a100-80gb"), ("A800", "a800"), ("H800", "h800"),
        ("H100", "h100"), ("H200", "h200"), ("B200", "b200"),
    ]  # fmt: skip
    places = [(text.find(part), name) for part, name in names if part in text]
    if not places:
        raise _NotStated(f"the GPU '{text}' is not known")
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


def _number(row: dict[str, str], name: str, otherwise: str) -> float:
    value = _optional(row, name)
    if value is None:
        raise _NotStated(otherwise)
    return value


def _optional(row: dict[str, str], name: str) -> float | None:
    """The positive number in a column; None if it is empty."""
    if not row[name]:
        return None
    try:
        value = float(row[name])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise _NotStated(f"{name} is '{row[name]}'")
    return value


def _sequences(row: dict[str, str], seq: float, gpus: float, strategy: Strategy, assumed: list[str]) -> float:
    stated = _optional(row, "gbs_seqs")
    if stated is not None:
        return stated
    step_s, rate = _optional(row, "step_s"), _optional(row, "tok_s_gpu")
    if step_s and rate:
        return max(1, round(step_s * rate * gpus / seq))
    if strategy.pp == 1 and row["mbs"]:
        assumed.append("one micro-batch a step")
        return float(row["mbs"]) * gpus / (strategy.tp * strategy.cp)
    raise _NotStated("the global batch is not stated")


def _strategy(row: dict[str, str], model: Architecture, gpus: int, assumed: list[str]) -> Strategy:
    text = row["parallel"] or " ".join(re.findall(r"ZeRO-3|FSDP", row["model"]))
    if not text:
        raise _NotStated("how it is parallelised is not stated")
    sizes = {k: int(n) for k, n in re.findall(r"\b(TP|PP|VP|EP|CP|DP|ETP)(\d+)", text)}
    sharded = bool(re.search(r"FSDP|ZeRO-3", text))
    if not sizes and not sharded:
        raise _NotStated("degrees of parallelism are not stated")
    if "EP" not in sizes and re.search(r"\bEP\b", text):
        if not sharded:
            raise _NotStated("degrees of parallelism are not stated")
        sizes["EP"] = min(8, model.experts, gpus)
        assumed.append(f"EP {sizes['EP']}")
    elif "EP" not in sizes and sharded and "DeepEP" in text and model.experts:
        sizes["EP"] = min(8, model.experts, gpus)
        assumed.append(f"EP {sizes['EP']}")
    tp, pp, ep = sizes.get("TP", 1), sizes.get("PP", 1), sizes.get("EP", 1)
    if tp * pp * sizes.get("CP", 1) > gpus or model.layers < pp:
        raise _NotStated(f"TP {tp} * PP {pp} does not fit {gpus} GPUs")
    virtual = sizes.get("VP", 1)
    if "interleaved" in text and virtual == 1 and pp > 1:
        virtual = max(1, min(4, model.layers // pp))
        assumed.append(f"{virtual} chunks a stage")
    old = _is_before_flash(row)
    deepep = bool(re.search(r"DeepEP", text, re.IGNORECASE))
    return Strategy(
        tp=tp,
        pp=pp,
        virtual=virtual,
        ep=ep,
        cp=sizes.get("CP", 1),
        sharded=sharded,
        recompute=_recompute(row, assumed),
        node_copies=_copies_per_node(model, ep) if deepep else 1.0,
        exchange_hidden=OVERLAPPED_EXCHANGE if re.search(r"a2a overlap", text) else 0.0,
        flash=not old,
        sequence_parallel=not old,
        overlaps_data_parallel=not old,
    )


def _copies_per_node(model: Architecture, ep: int) -> float:
    """Tokens sent to a node over assignments to its experts, when a token goes to each node once."""
    nodes = max(1, ep // 8)
    if nodes == 1 or not model.top_k:
        return 1.0
    return nodes * (1 - (1 - 1 / nodes) ** model.top_k) / model.top_k


def _is_before_flash(row: dict[str, str]) -> bool:
    """Megatron-LM of 2021 and BLOOM's had the score matrix in memory."""
    return bool(re.search(r"bigscience|2104\.04473|2205\.01068", row["source"]))


def _recompute(row: dict[str, str], assumed: list[str]) -> str:
    text = f"{row['recompute']} {row['parallel']} {row['note']}".lower()
    if re.search(r"recompute[= ]*moe", text):
        return "moe"
    if row["recompute"].lower() == "none":
        return "none"
    if "norm,act" in text or "selective" in text:
        return "selective"
    if re.search(r"full[- ]recompute|^full", text.strip()) or row["recompute"].lower() == "full":
        return "full"
    if _is_before_flash(row) or "ZeRO-3" in row["parallel"]:
        assumed.append("full recompute")
        return "full"
    assumed.append("selective recompute")
    return "selective"


def _micro_batch(row: dict[str, str], assumed: list[str]) -> int:
    stated = _optional(row, "mbs")
    if stated is not None:
        return int(stated)
    if match := re.search(r"mbs(\d+)", row["parallel"]):
        return int(match[1])
    assumed.append("micro-batch 1")
    return 1
