#!/usr/bin/env python3
"""Rehearse a cluster's ds_config on this machine: the real engine as one rank of it, and what it does beside the plan.

Of a model, or of each phase of a run config.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipe.base.arguments import positive_int
from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError, exit_on_user_error
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.run_config.resolved import ResolvedPhase, resolve_phases
from recipe.base.run_config.routing import Routing
from recipe.base.settings import RECOMPUTES, load_run_config
from recipe.base.tables import duration
from recipe.planner.communication import bytes_by_kind
from recipe.planner.memory import state_bytes
from recipe.planner.phases import phase_named
from recipe.planner.workload import RunFacts, Workload

EXAMPLE = """examples:
  python launch/rehearse.py --ds-config ds_configs/a100_1024.json --model recipe/configs/models/30b-a3b
  python launch/rehearse.py --ds-config ds_configs/a100_256.json --config recipe/configs/runs/pretrain_30b.yaml --phase long_32k"""
SOURCES = 2


@dataclass(frozen=True)
class Rehearsed:
    """What is rehearsed: a model, or a phase of a run config, on the ds_config's ranks."""

    name: str  # of the phase; empty where there is no run config
    shape: ModelShape
    ds: DsConfig
    ds_raw: dict[str, Any]
    seq_length: int  # to which sequences are cut
    whole_length: int
    recompute: str
    document_attention: bool = False
    routing: Routing = field(default_factory=Routing)


@dataclass(frozen=True)
class Report:
    """What the engine did beside the plan, as JSON has it and as the terminal has it."""

    values: dict[str, Any]
    text: str


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ds-config", required=True, type=Path, help="the ds_config, as it is shipped")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="folder with the model's config.json")
    what.add_argument(
        "--config", type=Path, metavar="YAML", help="run config, whose phases are rehearsed one after the other"
    )
    parser.add_argument("--phase", metavar="NAME", help="with --config: this phase alone")
    parser.add_argument("--world", type=positive_int, help="ranks (default: what the ds_config is written for)")
    parser.add_argument(
        "--layers", type=positive_int, help="decoder layers that are kept (default: the dense ones and one more)"
    )
    parser.add_argument(
        "--vocab", type=positive_int, default=8192, help="tokens of the vocabulary that are kept (default: %(default)s)"
    )
    parser.add_argument(
        "--seq",
        type=positive_int,
        default=16,
        help="tokens of a sequence; with --config of one of data.seq_length, and those of other phases in proportion (default: %(default)s)",
    )
    parser.add_argument(
        "--recompute",
        choices=RECOMPUTES,
        help="compute.recompute of the run (default: the run config's; without one selective where the ds_config has recipe.kept_gib, "
        "else non_reentrant)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; with --config one list")
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    subjects = _of_config(args) if args.config is not None else [_of_model(args)]
    for subject in subjects:
        _check(args, subject)
    # A process builds one engine. Those of more phases are forked, before torch is imported.
    report = _report if len(subjects) == 1 else _in_child
    reports = [report(args, subject) for subject in subjects]
    if not args.json:
        print("\n\n".join(done.text for done in reports))
    elif args.config is None:
        print(json.dumps(reports[0].values, indent=2))
    else:
        named = [{"phase": subject.name, **done.values} for subject, done in zip(subjects, reports, strict=True)]
        print(json.dumps(named, indent=2))
    return 0 if all(done.values["agrees"] for done in reports) else 1


def _of_model(args: argparse.Namespace) -> Rehearsed:
    if args.phase is not None:
        raise UserError("--phase names a phase of a run config; give it as --config in place of --model")
    ds, ds_raw = load_ds_config(args.ds_config)
    recompute = args.recompute or recompute_for(ds)
    return Rehearsed("", load_model_shape(args.model), ds, ds_raw, args.seq, args.seq, recompute)


def _of_config(args: argparse.Namespace) -> list[Rehearsed]:
    run = load_run_config(args.config)
    phases = resolve_phases(run, load_model_shape(run.model), *load_ds_config(args.ds_config), path=args.config)
    if args.phase is not None:
        phases = (phase_named(args.phase, phases),)
    return [_of_phase(args, phase, run.data.seq_length) for phase in phases]


def _of_phase(args: argparse.Namespace, phase: ResolvedPhase, run_length: int) -> Rehearsed:
    data, compute = phase.run.data, phase.run.compute
    cut = max(2, args.seq * data.seq_length // run_length)
    return Rehearsed(
        phase.name, phase.shape, phase.ds, phase.ds_raw, cut, data.seq_length, args.recompute or compute.recompute,
        data.document_attention, phase.run.routing,
    )  # fmt: skip


def _check(args: argparse.Namespace, subject: Rehearsed) -> None:
    """Raises UserError where it cannot be rehearsed."""
    if found := subject.ds.problems_with(subject.shape, args.world or subject.ds.world_size):
        raise ConfigError(f"{args.ds_config} with {args.model or args.config}", found)
    _cut(subject.shape, args.layers, args.vocab)


def _in_child(args: argparse.Namespace, subject: Rehearsed) -> Report:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_report, (args, subject))


def _report(args: argparse.Namespace, subject: Rehearsed) -> Report:
    """Rehearse it, and compare what the engine did with the plan."""
    ds = subject.ds
    cut = _cut(subject.shape, args.layers, args.vocab)
    cluster = cluster_of("a100-80gb", ds.world_size, None)  # any GPU: bytes do not depend on it
    work = Workload(cut, cluster, ds, RunFacts(subject.seq_length, subject.recompute, sources=SOURCES, compile=False))

    # Imported late: refusing a configuration needs neither torch nor DeepSpeed.
    from recipe.engine.rehearsal import fake_ranks, rehearse

    progress = Progress()
    phase = f", phase {subject.name}" if subject.name else ""
    progress.tell(
        f"{args.ds_config} with {args.model or args.config}{phase}, as rank 0 of {ds.world_size:,} ranks of which this process is "
        "the only one; one to three minutes for a model of 30B on two cores, longer on a busy machine"
    )
    with redirect_stdout(sys.stderr), fake_ranks(ds.world_size):
        done = rehearse(
            cut, subject.ds_raw, seq_length=subject.seq_length, recompute=subject.recompute, sources=SOURCES,
            routing=subject.routing, document_attention=subject.document_attention, tell=progress.tell,
        )  # fmt: skip
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
        "layers": [subject.shape.num_hidden_layers, cut.num_hidden_layers],
        "vocab_size": [subject.shape.vocab_size, cut.vocab_size],
        "seq_length": subject.seq_length,
    }
    values = {
        "groups": done.groups, "cut": cuts, "recompute": subject.recompute, "kept": dict(work.kept.layers),
        "exchange_parts": work.exchange_parts, "collectives": rows, "held": held, "agrees": not differs,
    }  # fmt: skip
    return Report(values, _text(subject, values, work))


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


def _text(subject: Rehearsed, found: dict[str, Any], work: Workload) -> str:
    cut, ds = work.shape, work.ds
    groups, (layers, kept) = found["groups"], found["cut"]["layers"]
    rope, batch = cut.rope_parameters, f"{ds.train_micro_batch_size_per_gpu} x {ds.gradient_accumulation_steps}"
    phase = (
        f"phase {subject.name}: {batch} sequences of {subject.whole_length:,} a rank, base frequency {rope.rope_theta:,.0f}"
        f"{', attention inside documents' if subject.document_attention else ''}"
    )
    lines = [
        *([phase] if subject.name else []),
        f"rank 0 of {groups['world']:,}: experts over {groups['expert_parallel']} ranks, their copies over "
        f"{groups['expert_data_parallel']}; {cut.n_routed_experts // groups['expert_parallel']} experts of a layer here",
        f"cut to fit this machine: {kept} of {layers} layers, {cut.vocab_size:,} tokens of the vocabulary, "
        f"sequences of {subject.seq_length}; widths, experts and the ds_config as they are",
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
