#!/usr/bin/env python3
"""Rehearse a cluster's ds_config on this machine: the real engine as one rank of it, and what it does beside the plan."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.base.arguments import positive_int
from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.settings import RECOMPUTES
from recipe.base.tables import duration
from recipe.planner.communication import bytes_by_kind
from recipe.planner.memory import state_bytes
from recipe.planner.workload import RunFacts, Workload

EXAMPLE = """example:
  python launch/rehearse.py --ds-config ds_configs/a100_1024.json --model recipe/configs/models/30b-a3b"""
SOURCES = 2


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ds-config", required=True, type=Path, help="the ds_config, as it is shipped")
    parser.add_argument("--model", required=True, type=Path, help="folder with the model's config.json")
    parser.add_argument("--world", type=positive_int, help="ranks (default: what the ds_config is written for)")
    parser.add_argument(
        "--layers", type=positive_int, help="decoder layers that are kept (default: the dense ones and one more)"
    )
    parser.add_argument(
        "--vocab", type=positive_int, default=8192, help="tokens of the vocabulary that are kept (default: %(default)s)"
    )
    parser.add_argument("--seq", type=positive_int, default=16, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument(
        "--recompute",
        choices=RECOMPUTES,
        help="compute.recompute of the run (default: selective where the ds_config has recipe.kept_gib, else non_reentrant)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)  # fmt: skip


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    ds, ds_raw = load_ds_config(args.ds_config)
    shape = load_model_shape(args.model)
    if found := ds.problems_with(shape, args.world or ds.world_size):
        raise ConfigError(f"{args.ds_config} with {args.model}", found)
    cut = _cut(shape, args.layers, args.vocab)
    cluster = cluster_of("a100-80gb", ds.world_size, None)  # any GPU: bytes do not depend on it
    recompute = args.recompute or recompute_for(ds)
    work = Workload(cut, cluster, ds, RunFacts(args.seq, recompute, sources=SOURCES, compile=False))

    # Imported late: refusing a configuration needs neither torch nor DeepSpeed.
    from recipe.engine.rehearsal import fake_ranks, rehearse

    progress = Progress()
    progress.tell(
        f"{args.ds_config} with {args.model}, as rank 0 of {ds.world_size:,} ranks of which this process is the only one; "
        "about half a minute for a model of 30B, longer on a busy machine"
    )
    with redirect_stdout(sys.stderr), fake_ranks(ds.world_size):
        done = rehearse(cut, ds_raw, seq_length=args.seq, recompute=recompute, sources=SOURCES, tell=progress.tell)
    progress.tell("comparing with the plan")
    engine = {(k.op, k.ranks, k.dtype): v for k, v in done.counted.bytes.items()}
    planned, states = bytes_by_kind(work), asdict(state_bytes(work))
    rows: list[dict[str, Any]] = [
        {"op": op, "ranks": ranks, "dtype": dtype, "engine": engine.get(key, 0), "plan": planned.get(key, 0)}
        for key in sorted(engine.keys() | planned.keys())
        for op, ranks, dtype in (key,)
    ]
    rows = [row for row in rows if row["ranks"] > 1]
    held = {name: {"engine": size, "plan": states[name]} for name, size in done.state_bytes.items()}
    differs = [r for r in rows if r["engine"] != r["plan"]] + [h for h in held.values() if h["engine"] != h["plan"]]
    cuts = {
        "layers": [shape.num_hidden_layers, cut.num_hidden_layers],
        "vocab_size": [shape.vocab_size, cut.vocab_size],
        "seq_length": args.seq,
    }
    found_all = {
        "groups": done.groups, "cut": cuts, "recompute": recompute, "kept": dict(work.kept.layers),
        "exchange_parts": work.exchange_parts, "collectives": rows, "held": held, "agrees": not differs,
    }  # fmt: skip
    print(json.dumps(found_all, indent=2) if args.json else _text(args, found_all, work))
    return 1 if differs else 0


def recompute_for(ds: DsConfig) -> str:
    """`compute.recompute` that a ds_config is written for."""
    return "selective" if ds.recipe.kept_gib else "non_reentrant"


class Progress:
    """Says on standard error what is being done, and how long after the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, message: str) -> None:
        print(f"rehearse: {duration(time.monotonic() - self._began):>7}  {message}", file=sys.stderr, flush=True)


def _cut(shape: ModelShape, layers: int | None, vocab: int) -> ModelShape:
    """The model with fewer layers and tokens; widths and experts are what they are."""
    smallest = shape.first_k_dense_replace + 1
    layers = smallest if layers is None else layers
    if not smallest <= layers <= shape.num_hidden_layers:
        raise UserError(f"--layers {layers} must be between {smallest} and the model's {shape.num_hidden_layers}")
    return shape.model_copy(update={"num_hidden_layers": layers, "vocab_size": min(vocab, shape.vocab_size)})


def _text(args: argparse.Namespace, found: dict, work: Workload) -> str:
    cut = work.shape
    groups, (layers, kept) = found["groups"], found["cut"]["layers"]
    lines = [
        f"rank 0 of {groups['world']:,}: experts over {groups['expert_parallel']} ranks, their copies over "
        f"{groups['expert_data_parallel']}; {cut.n_routed_experts // groups['expert_parallel']} experts of a layer here",
        f"cut to fit this machine: {kept} of {layers} layers, {cut.vocab_size:,} tokens of the vocabulary, "
        f"sequences of {args.seq}; widths, experts and the ds_config as they are",
        _recomputed(work),
        "",
        f"{'held between steps, bytes':<38}{'engine':>18}{'plan':>18}",
    ]
    lines += [f"  {name:<36}{h['engine']:>18,}{h['plan']:>18,}{_mark(h)}" for name, h in found["held"].items()]
    lines += ["", f"{'collectives of a step, bytes':<38}{'engine':>18}{'plan':>18}"]
    lines += [
        f"  {r['op']:<16}{r['dtype']:<8}{r['ranks']:>6} ranks{r['engine']:>18,}{r['plan']:>18,}{_mark(r)}"
        for r in found["collectives"]
    ]
    lines += ["", "the engine does what is planned" if found["agrees"] else "the engine differs from the plan"]
    return "\n".join(lines)


def _recomputed(work: Workload) -> str:
    """What layers keep and in how many parts they exchange, as the ds_config has it for the model that was cut."""
    recompute, kept = work.run.recompute, ""
    if recompute == "selective":
        kept = f", which keeps {work.kept} within recipe.kept_gib {work.ds.recipe.kept_gib:g}"
    elif work.ds.recipe.kept_gib:
        kept = f", which leaves recipe.kept_gib {work.ds.recipe.kept_gib:g} unused"
    parts = work.exchange_parts
    return f"recompute {recompute}{kept}; exchanges of tokens in {parts} part{'s' * (parts > 1)}"


def _mark(row: dict) -> str:
    return "" if row["engine"] == row["plan"] else "  differs"


if __name__ == "__main__":
    sys.exit(main())
