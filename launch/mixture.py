#!/usr/bin/env python3
"""Shares of the sources before a run: train proxy runs of random mixtures, fit their losses, propose a mixture with intervals.

As RegMix (arXiv 2407.01492) and Olmix (arXiv 2602.12237). The runs are small models of the target's family, each by
deepspeed and recipe/train.py. No proxy reads a token twice. A finished run is not run again, a stopped one is
resumed. The last mixtures are held out: their losses are predicted and written down before they run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.proxies import (
    add_run_arguments,
    check_tokens,
    files_of,
    is_finished,
    record_with_predictions,
    train_all,
    write_runs,
)
from recipe.base.arguments import count, natural_int, positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_folder
from recipe.base.settings import RunConfig
from recipe.base.tables import markdown_table
from recipe.data.cycles import Cycles
from recipe.data.mixture import CYCLE, Stretch, mixture_weights, normalized
from recipe.data.token_folder import TokenFolder
from recipe.scaling.family import member
from recipe.scaling.measured import Measured
from recipe.scaling.mixture.law import Floats, fewest_runs
from recipe.scaling.mixture.proposal import propose
from recipe.scaling.mixture.regression import Regression, predict, redraws, regression_of
from recipe.scaling.mixture.report import proposal_tables, quality_tables
from recipe.scaling.mixture.sampling import sample_mixtures
from recipe.scaling.rungs import Rung, rung

SCHEMA, VERSION = "recipe.mixture", 1
CENTRE = 0.5  # exponent on a source's tokens around which mixtures are drawn, RegMix's temperature
PROXIES = 3  # times as many as a law needs at least
SEED = RunConfig.model_fields["seed"].default
EXAMPLE = """examples:
  python launch/mixture.py --model recipe/configs/models/tiny --tokens work/quickstart/tokens \\
      --tokenizer work/quickstart/tokenizer --output work/mixture --width 32 --tokens-per-parameter 0.2 --cpu-ranks 2 --dry-run"""


@dataclass(frozen=True)
class Sources:
    """What the training data is mixed of, in one order.

    Args:
        fresh: tokens of each that proxies can read.
        available: tokens of each that the target can read.
        caps: the largest share of each that the target can read.
    """

    names: tuple[str, ...]
    fresh: Floats
    available: Floats
    caps: Floats

    def shares(self, weights: Mapping[str, float]) -> Floats:
        return np.array([weights[name] for name in self.names])

    def named(self, shares_S: Sequence[float] | Floats) -> dict[str, float]:
        return {name: float(share) for name, share in zip(self.names, shares_S, strict=True)}


@dataclass(frozen=True)
class Proxy:
    """A run of one mixture.

    Args:
        weights: in its run config.
        shares: of its sequences, which come from the sources in whole numbers.
    """

    rung: Rung
    weights: Mapping[str, float]
    shares: Mapping[str, float]

    def as_dict(self, measured: Measured | None = None) -> dict[str, Any]:
        facts = {"name": self.rung.name, "tokens": self.rung.tokens, "shares": dict(self.shares)}
        return facts if measured is None else {**facts, "bits_per_byte": dict(measured.bits_per_byte), "loss": dict(measured.loss)}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with the target's config.json")
    parser.add_argument("--tokens", type=Path, required=True, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer that made the tokens")
    parser.add_argument("--output", type=Path, required=True, help="folder of the proxies: configs, runs, mixture.json")
    parser.add_argument("--width", type=positive_int, required=True, help="hidden size of the proxies")
    parser.add_argument("--tokens-per-parameter", type=count, default=20.0, metavar="RATIO",
                        help="tokens of a proxy over its active parameters (default: 20)")  # fmt: skip
    parser.add_argument("--proxies", type=positive_int, help=f"mixtures that are fitted (default: {PROXIES} times the fewest that a law needs)")  # fmt: skip
    parser.add_argument("--held-out", type=natural_int, default=2, help="more mixtures, which are predicted before they run (default: 2)")  # fmt: skip
    parser.add_argument("--objective", type=of_source, nargs="+", metavar="SOURCE=WEIGHT",
                        help="held-out sources in the mean of bits per byte that the mixture minimises (default: all languages alike)")  # fmt: skip
    parser.add_argument("--target-tokens", type=count, help="that the target trains on, such as 1T; limits the shares")
    parser.add_argument("--available", type=of_source, nargs="+", default=[], metavar="SOURCE=TOKENS",
                        help="tokens of sources that the target can read, where --tokens is a sample (default: those of --tokens)")  # fmt: skip
    parser.add_argument("--max-epochs", type=count, default=4.0,
                        help="times that the target reads a source at most (default: 4, up to which repeated data costs little, arXiv 2305.16264)")  # fmt: skip
    add_run_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the mixtures and what they cost; write and run nothing")  # fmt: skip
    return parser.parse_args(argv)


def of_source(text: str) -> tuple[str, float]:
    """A source with a weight or a count of tokens, such as en=0.5 or zh=3T."""
    name, _, number = text.partition("=")
    return name, count(number)


def sources_of(folder: TokenFolder, args: argparse.Namespace) -> Sources:
    sizes = folder.sizes("train")
    if len(sizes) < 2:
        raise UserError(f"{args.tokens} has one source, which needs no mixture; tokenize with source_by lang or source")
    if unknown := sorted(set(dict(args.available)) - set(sizes)):
        raise UserError(f"--available names {', '.join(unknown)}, but {args.tokens} has {', '.join(sizes)}")
    available = {**sizes, **dict(args.available)}
    fresh, there = np.array(list(sizes.values()), float), np.array([available[name] for name in sizes], float)
    caps = np.minimum(1.0, args.max_epochs * there / (args.target_tokens or there.sum()))
    if caps.sum() < 1:
        raise UserError(f"the sources have {there.sum():.3g} tokens, and --target-tokens {args.target_tokens:.3g} would read them more than --max-epochs {args.max_epochs:g} times; lower it or add data")  # fmt: skip
    return Sources(tuple(sizes), fresh, there, caps)


def objective_of(folder: TokenFolder, args: argparse.Namespace) -> dict[str, float]:
    """Weights of held-out sources; by default each language has the same, shared by its sources."""
    held_out = list(folder.sizes("held_out"))
    given = dict(args.objective or [])
    if unknown := sorted(set(given) - set(held_out)):
        raise UserError(f"--objective names {', '.join(unknown)}, but the held-out sources of {args.tokens} are {', '.join(held_out)}")  # fmt: skip
    if given:
        return normalized(given)
    languages = [name.split("-")[0] for name in held_out]
    return normalized({name: 1 / languages.count(lang) for name, lang in zip(held_out, languages, strict=True)})


def proxies_of(target: ModelShape, sources: Sources, args: argparse.Namespace) -> list[Proxy]:
    """The natural mixture, then random ones; the last are those that are held out."""
    base = rung("natural", member(target, args.width), args.tokens_per_parameter, args.seq, args.gpus or args.cpu_ranks)
    natural_S = sources.available / sources.available.sum()
    fresh_caps_S = sources.fresh / base.tokens
    if (natural_S > fresh_caps_S).any():
        short = [n for n, share, cap in zip(sources.names, natural_S, fresh_caps_S, strict=True) if share > cap]
        raise UserError(f"a proxy of {base.tokens:,} tokens reads more of {', '.join(short)} than {args.tokens} has; lower --tokens-per-parameter or --width, since proxies read fresh tokens")  # fmt: skip
    needed = fewest_runs(len(sources.names))
    fitted = args.proxies or PROXIES * needed
    if fitted < needed:
        raise UserError(f"--proxies {fitted} are too few for {len(sources.names)} sources; give {needed} or more")
    centre_S = sources.shares(mixture_weights(sources.named(sources.available), CENTRE))
    mixtures = sample_mixtures(centre_S, np.minimum(fresh_caps_S, sources.caps), fitted - 1 + args.held_out, 1 / CYCLE)
    names = ["natural", *(f"mix-{i}" for i in range(1, fitted)), *(f"held-out-{i + 1}" for i in range(args.held_out))]
    return [proxy(name, base, sources.named(s), args) for name, s in zip(names, [natural_S, *mixtures], strict=True)]


def proxy(name: str, base: Rung, weights: dict[str, float], args: argparse.Namespace) -> Proxy:
    sequences = base.tokens // args.seq
    read = Cycles([Stretch(0, weights)], SEED).count(sequences)
    run = Rung(name, base.shape, base.tokens, base.batch_sequences, base.lr, base.flops)
    return Proxy(run, weights, {source: number / sequences for source, number in read.items()})


def write_proxies(proxies: Sequence[Proxy], args: argparse.Namespace) -> None:
    write_runs({path: text for p in proxies for path, text in files_of(p.rung, args, p.weights).items()}, args.output)


def table_of(proxies: Sequence[Proxy], sources: Sources) -> str:
    head = ["run", *sources.names]
    rows = [[p.rung.name, *(f"{p.shares[name]:.3f}" for name in sources.names)] for p in proxies]
    first = proxies[0].rung
    size = f"{len(proxies)} runs of {first.size.active / 1e6:.3g}M active parameters and {first.tokens:,} tokens, {len(proxies) * first.flops:.2e} FLOPs"  # fmt: skip
    return f"{markdown_table(head, rows)}\n\n{size}"


def regress(proxies: Sequence[Proxy], measured: Sequence[Measured], sources: Sources) -> Regression:
    shares_RS = np.array([sources.shares(p.shares) for p in proxies])
    return regression_of(shares_RS, {s: np.array([m.bits_per_byte[s] for m in measured]) for s in measured[0].loss})


def predictions(regression: Regression, again: list[Regression], shares_S: Floats) -> dict[str, Any]:
    return {source: predict(regression, again, source, shares_S).as_dict() for source in regression.fits}


def predicted_before(
    held_out: Sequence[Proxy], fitted: Sequence[Proxy], measured: Sequence[Measured], sources: Sources, path: Path
) -> list[dict[str, Any]]:
    """The held-out runs with their predictions, which are written down before the first of them runs, and stay."""
    if any(is_finished(path.parent / each.rung.name / "run") for each in held_out):
        return [{key: run[key] for key in ("name", "tokens", "shares", "predicted_at", "prediction")} for run in record_with_predictions(path)["held_out"]]  # fmt: skip
    regression = regress(fitted, measured, sources)
    again = redraws(regression) if held_out else []
    told = [{**p.as_dict(), "predicted_at": time.time(), "prediction": predictions(regression, again, sources.shares(p.shares))} for p in held_out]  # fmt: skip
    runs = [p.as_dict(m) for p, m in zip(fitted, measured, strict=True)]
    write_json(path, {"schema": SCHEMA, "version": VERSION, "runs": runs, "held_out": told})
    return told


def record_of(
    regression: Regression, weights: Mapping[str, float], sources: Sources, args: argparse.Namespace
) -> dict[str, Any]:
    """What all runs say: laws, how well they predict, and the proposal if they predict at all."""
    each, together = regression.qualities(weights)
    record: dict[str, Any] = {
        "sources": {n: {"fresh": f, "available": a, "cap": c} for n, f, a, c in zip(sources.names, sources.fresh, sources.available, sources.caps, strict=True)},
        "target_tokens": args.target_tokens,
        "max_epochs": args.max_epochs,
        "objective": dict(weights),
        "regression": {
            s: {"law": f.law.as_dict(), "noise": f.noise, "left_out": each[s].as_dict()} for s, f in regression.fits.items()
        },
        "left_out": together.as_dict(),
        "proposal": None,
    }  # fmt: skip
    if together.predicts:
        again = redraws(regression)
        natural_S = sources.available / sources.available.sum()
        proposal = propose(regression, again, weights, sources.caps, natural_S)
        record["proposal"] = {
            "shares": {n: s.as_dict() for n, s in zip(sources.names, proposal.shares, strict=True)},
            "bits_per_byte": predictions(regression, again, proposal.shares_S),
            "gain": proposal.gain.as_dict(),
        }
        record["natural"] = {
            "shares": sources.named(natural_S),
            "bits_per_byte": predictions(regression, again, natural_S),
        }
    return record


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    target = load_model_shape(args.model)
    check_output_folder("--output", args.output)
    folder = check_tokens(args, target)
    sources, weights = sources_of(folder, args), objective_of(folder, args)
    proxies = proxies_of(target, sources, args)
    fitted, held_out = proxies[: len(proxies) - args.held_out], proxies[len(proxies) - args.held_out :]
    print(table_of(proxies, sources), flush=True)
    if args.dry_run:
        return
    write_proxies(proxies, args)
    path, measured = args.output / "mixture.json", train_all([proxy.rung for proxy in fitted], args)
    predicted = predicted_before(held_out, fitted, measured, sources, path)
    seen = train_all([proxy.rung for proxy in held_out], args)
    record = {
        "schema": SCHEMA,
        "version": VERSION,
        "runs": [p.as_dict(m) for p, m in zip(fitted, measured, strict=True)],
        "held_out": [{**run, **p.as_dict(m)} for run, p, m in zip(predicted, held_out, seen, strict=True)],
        **record_of(regress(proxies, [*measured, *seen], sources), weights, sources, args),
    }
    write_json(path, record)
    print(quality_tables(record))
    if record["proposal"] is None:
        raise UserError(f"the laws predict a run no better than the mean of the others, so {path} proposes no mixture; add --proxies, or more --tokens-per-parameter")  # fmt: skip
    print(f"\n{proposal_tables(record)}\nwrote {path}")


if __name__ == "__main__":
    sys.exit(main())
