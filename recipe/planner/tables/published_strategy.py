"""What a published row says of how the run was spread, batched and overlapped.

All of it is read from the row's own columns; what it does not say has the framework's default, or is assumed and named.
"""

from __future__ import annotations

import re

from recipe.base.hardware import GPUS_PER_NODE
from recipe.planner.architecture import Architecture
from recipe.planner.search.strategies import OVERLAPPED_EXCHANGE, Strategy
from recipe.planner.timing.kernels import COMPILED, EAGER, FUSED, Software

# What a source says of all its MoE rows. Automodel: the column "Kernel Optimizations" of docs/performance-summary.mdx.
OF_SOURCES = {"NVIDIA-NeMo/Automodel": "DeepEP"}


class NotStated(Exception):
    """A row does not state enough, or states what the planner has no model of."""


def number(row: dict[str, str], name: str, otherwise: str) -> float:
    value = optional(row, name)
    if value is None:
        raise NotStated(otherwise)
    return value


def optional(row: dict[str, str], name: str) -> float | None:
    """The positive number in a column; None if it is empty."""
    if not row[name]:
        return None
    try:
        value = float(row[name])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise NotStated(f"{name} is '{row[name]}'")
    return value


def sequences_of(row: dict[str, str], seq: float, gpus: float, strategy: Strategy, assumed: list[str]) -> float:
    stated = optional(row, "gbs_seqs")
    if stated is not None:
        return stated
    step_s, rate = optional(row, "step_s"), optional(row, "tok_s_gpu")
    if step_s and rate:
        return max(1, round(step_s * rate * gpus / seq))
    if strategy.pp == 1 and row["mbs"]:
        assumed.append("one micro-batch a step")
        return float(row["mbs"]) * gpus / (strategy.tp * strategy.cp)
    raise NotStated("the global batch is not stated")


def strategy_of(row: dict[str, str], model: Architecture, gpus: int, assumed: list[str]) -> Strategy:
    """How a run is spread; what is assumed of it is added to `assumed`."""
    text = row["parallel"] or " ".join(re.findall(r"ZeRO-3|FSDP", row["model"]))
    if not text:
        raise NotStated("how it is parallelised is not stated")
    sizes = {k: int(n) for k, n in re.findall(r"\b(TP|PP|VP|EP|CP|DP|ETP)(\d+)", text)}
    sharded = bool(re.search(r"FSDP|ZeRO-3", text))
    if not sizes and not sharded:
        raise NotStated("degrees of parallelism are not stated")
    said = said_of(row)
    ep = _expert_ranks(text, said, sizes, model, gpus, assumed, sharded=sharded)
    tp, pp, virtual = sizes.get("TP", 1), sizes.get("PP", 1), sizes.get("VP", 1)
    if tp * pp * sizes.get("CP", 1) > gpus or model.layers < pp:
        raise NotStated(f"TP {tp} * PP {pp} does not fit {gpus} GPUs")
    if sharded and model.experts and ep == 1 and gpus > 1:
        raise NotStated("each GPU gathers all experts of a layer (no expert parallelism), which is not modelled")
    if "interleaved" in text and virtual == 1 and pp > 1:
        virtual = max(1, min(4, model.layers // pp))
        assumed.append(f"{virtual} chunks a stage")
    old = is_before_flash(row)
    return Strategy(
        tp=tp,
        pp=pp,
        virtual=virtual,
        ep=ep,
        cp=sizes.get("CP", 1),
        sharded=sharded,
        weights_kept=bool(re.search(r"shard_grad_op|weights (are )?kept|reshard_after_forward\W*(false|never)", said)),
        prefetch=not re.search(r"(no|without) prefetch|on demand|on-demand", said),
        recompute=_recompute(row, assumed),
        node_copies=_copies_per_node(model, ep) if "deepep" in said else 1.0,
        exchange_hidden=OVERLAPPED_EXCHANGE if "a2a overlap" in said else 0.0,
        flash=not old,
        sequence_parallel=not old,
        overlaps_data_parallel=not old and not re.search(r"(no|without) overlap|old deepspeed", said),
        software=_software(said),
    )


def said_of(row: dict[str, str]) -> str:
    """What a row and its source say of the software, in lower case."""
    of_source = " ".join(words for source, words in OF_SOURCES.items() if source in row["source"])
    return f"{row['parallel']} {row['precision']} {row['note']} {of_source if row['kind'] == 'moe' else ''}".lower()


def _expert_ranks(
    text: str, said: str, sizes: dict[str, int], model: Architecture, gpus: int, assumed: list[str], *, sharded: bool
) -> int:
    if "EP" in sizes or not model.experts:
        return sizes.get("EP", 1)
    named = bool(re.search(r"\bEP\b", text))
    if named and not sharded:
        raise NotStated("degrees of parallelism are not stated")
    if match := re.search(r"deepep\W{0,3}(?:with )?ep\W?(\d+)", said):
        return int(match[1])
    if not named and "deepep" not in text.lower():
        return 1
    if min(model.experts, gpus) > GPUS_PER_NODE:  # one node, or more of them: the exchanges take other links
        raise NotStated("the expert-parallel size is not stated")
    ranks = min(model.experts, gpus)
    assumed.append(f"EP {ranks}")
    return ranks


def _software(said: str) -> Software:
    if re.search(r"\beager\b|(no|not|without) (torch\.)?compiled?\b", said):
        return EAGER
    return COMPILED if re.search(r"\b(torch\.)?compiled?\b", said) else FUSED


def _copies_per_node(model: Architecture, ep: int) -> float:
    """Tokens sent to a node over assignments to its experts, when a token goes to each node once."""
    nodes = max(1, ep // 8)
    if nodes == 1 or not model.top_k:
        return 1.0
    return nodes * (1 - (1 - 1 / nodes) ** model.top_k) / model.top_k


def is_before_flash(row: dict[str, str]) -> bool:
    """Megatron-LM of 2021 and BLOOM's had the score matrix in memory."""
    return bool(re.search(r"bigscience|2104\.04473|2205\.01068", row["source"]))


def _recompute(row: dict[str, str], assumed: list[str]) -> str:
    text = f"{row['recompute']} {row['parallel']} {row['note']}".lower()
    if re.search(r"recompute[= ]*moe", text):
        return "moe"
    if row["recompute"].lower() == "none":
        return "none"
    if re.search(r"selective (op|layer)", text) or ("torchtitan" in row["source"].lower() and "selective" in text):
        return "half"  # torchtitan keeps all but every second matmul (torchtitan/distributed/activation_checkpoint.py)
    if "norm,act" in text or "selective" in text:
        return "selective"
    if re.search(r"full[- ]recompute|^full", text.strip()) or row["recompute"].lower() == "full":
        return "full"
    if is_before_flash(row) or "ZeRO-3" in row["parallel"]:
        assumed.append("full recompute")
        return "full"
    assumed.append("selective recompute")
    return "selective"


def micro_batch_of(row: dict[str, str], assumed: list[str]) -> int:
    stated = optional(row, "mbs")
    if stated is not None:
        return int(stated)
    if match := re.search(r"mbs(\d+)", row["parallel"]):
        return int(match[1])
    assumed.append("micro-batch 1")
    return 1
