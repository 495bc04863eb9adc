#!/usr/bin/env python3
"""The loss of a run before it is launched: write and train a ladder of small models of its family, fit a law, predict.

Each run goes by deepspeed and recipe/train.py. A finished one is not run again, a stopped one is resumed. The largest width is held out: its loss is predicted and written down before it runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.proxies import (
    add_run_arguments,
    check_tokens,
    files_of,
    is_finished,
    record_with_predictions,
    train_all,
    write_runs,
)
from recipe.base.arguments import count, positive_int
from recipe.base.errors import UserError, exit_on_user_error
from recipe.base.files import write_json
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.output_paths import check_output_folder
from recipe.base.tables import markdown_table
from recipe.scaling.fit import SPARE_RUNS, free_parameters
from recipe.scaling.ladder_file import SCHEMA, VERSION
from recipe.scaling.law import Size, size_of
from recipe.scaling.measured import Measured, fits_as_dict, fits_of, predictions
from recipe.scaling.rungs import Rung, rungs

EXAMPLE = """examples:
  python launch/ladder.py --model recipe/configs/models/tiny --tokens work/quickstart/tokens \\
      --tokenizer work/quickstart/tokenizer --output work/ladder --widths 32 48 64 --held-out 96 --tokens-per-parameter 0.2 0.5 \\
      --cpu-ranks 2 --dry-run"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with the target's config.json")
    parser.add_argument("--target-tokens", type=count, help="that the target trains on, such as 1T; predicts its loss")
    parser.add_argument("--tokens", type=Path, required=True, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer that made the tokens")
    parser.add_argument("--output", type=Path, required=True, help="folder of the ladder: configs, runs, ladder.json")
    parser.add_argument(
        "--widths", type=positive_int, nargs="+", required=True, help="hidden sizes of the small models"
    )
    parser.add_argument("--held-out", type=positive_int, required=True, help="hidden size of the run that is predicted")
    parser.add_argument(
        "--tokens-per-parameter", type=count, nargs="+", default=[10.0, 40.0], metavar="RATIO",
        help="tokens over active parameters, several; the held-out run has the largest (default: 10 40)",
    )  # fmt: skip
    parser.add_argument(
        "--experts", type=positive_int, nargs="+", default=[], metavar="N",
        help="routed experts of a layer, several, so that the law knows the active share (default: the target's number)",
    )  # fmt: skip
    parser.add_argument(
        "--lr-times-width", type=count, metavar="X",
        help="peak learning rate X over the hidden size, of a sweep at one width (default: Step Law's, at most 3e-3)",
    )  # fmt: skip
    parser.add_argument("--exponents", choices=("auto", "free", "published"), default="auto",
                        help="fit the law's exponents, or fix them at published ones (default: fitted where runs are enough)")  # fmt: skip
    add_run_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the ladder and what it costs; write and run nothing"
    )
    return parser.parse_args(argv)


def planned(args: argparse.Namespace, target: ModelShape) -> tuple[list[Rung], Rung]:
    """The rungs that are fitted, and the one that is held out, which has the target's experts."""
    if args.held_out <= max(args.widths):
        raise UserError(f"--held-out {args.held_out} must exceed all --widths; raise it")
    ranks = args.gpus or args.cpu_ranks
    if few := [number for number in args.experts if number < target.num_experts_per_tok]:
        raise UserError(f"--experts {few[0]} is less than the {target.num_experts_per_tok} experts that a token passes; raise it")  # fmt: skip
    fitted = rungs(target, args.widths, args.tokens_per_parameter, args.seq, ranks, args.experts, args.lr_times_width)
    (held_out,) = rungs(
        target, [args.held_out], [max(args.tokens_per_parameter)], args.seq, ranks, lr_times_width=args.lr_times_width
    )
    needed = len(free_parameters([r.size for r in fitted], args.exponents)) + SPARE_RUNS
    if len(fitted) < needed:
        raise UserError(f"{len(fitted)} runs are too few for a law, which needs {needed}; give more --widths or --tokens-per-parameter")  # fmt: skip
    if len({r.tokens / r.size.active for r in fitted}) < 2 or len(set(args.tokens_per_parameter)) < 2:
        raise UserError("one number of --tokens-per-parameter cannot tell model from data; give two or more")
    return fitted, held_out


def check_data(args: argparse.Namespace, target: ModelShape, ladder: Sequence[Rung]) -> None:
    most, there = max(r.tokens for r in ladder), sum(check_tokens(args, target).sizes("train").values())
    if most > there:
        raise UserError(f"the longest run reads {most:,} tokens and {args.tokens} has {there:,} for training; lower --tokens-per-parameter or the widths, since a law is of fresh tokens")  # fmt: skip


def write_ladder(ladder: Sequence[Rung], args: argparse.Namespace) -> None:
    """Write all configs and check them as the trainer does; a folder of another ladder is refused."""
    write_runs({path: text for rung in ladder for path, text in files_of(rung, args).items()}, args.output)


def as_dict(rung: Rung, measured: Measured | None = None) -> dict[str, Any]:
    size = vars(rung.size)
    facts = {
        "name": rung.name,
        **size,
        "batch_sequences": rung.batch_sequences,
        "peak_lr": rung.lr,
        "flops": rung.flops,
    }
    return facts if measured is None else {**facts, "bits_per_byte": dict(measured.bits_per_byte), "loss": dict(measured.loss)}  # fmt: skip


def table_of(ladder: Sequence[Rung]) -> str:
    head = ["run", "layers × width", "active", "tokens", "batch, sequences", "peak lr", "FLOPs"]
    rows = [[r.name, f"{r.shape.num_hidden_layers} × {r.shape.hidden_size}", f"{r.size.active / 1e6:.3g}M", f"{r.tokens:,}",
             f"{r.batch_sequences}", f"{r.lr:.2e}", f"{r.flops:.2e}"] for r in ladder]  # fmt: skip
    total = (
        f"{sum(r.tokens for r in ladder):,} tokens and {sum(r.flops for r in ladder):.2e} FLOPs in {len(ladder)} runs"
    )
    return f"{markdown_table(head, rows)}\n\n{total}"


def predicted_rows(title: str, told: dict[str, Any], measured: Measured | None = None) -> list[list[str]]:
    rows = []
    for source, both in told.items():
        bits = both["bits_per_byte"]
        was = "" if measured is None else f"{measured.bits_per_byte[source]:.4f} ({measured.bits_per_byte[source] / bits['value'] - 1:+.1%})"  # fmt: skip
        rows.append([title, source, f"{bits['value']:.4f} ({bits['low']:.4f} to {bits['high']:.4f})", f"{both['loss']['value']:.4f}", was])  # fmt: skip
    return rows


def climb(args: argparse.Namespace, fitted: Sequence[Rung], held_out: Rung, target: Size | None) -> None:
    """Train, predict the held-out run, train it, and predict the target from all runs."""
    path = args.output / "ladder.json"
    runs = train_all(fitted, args)
    fits = fits_of(runs, args.exponents)
    told = predictions(fits, runs, held_out.size)
    record: dict[str, Any] = {
        "schema": SCHEMA, "version": VERSION, "exponents": args.exponents,
        "runs": [as_dict(r, m) for r, m in zip(fitted, runs, strict=True)],
        "held_out": {**as_dict(held_out), "predicted_at": time.time(), "prediction": told, "fits": fits_as_dict(fits)},
    }  # fmt: skip
    if is_finished(args.output / held_out.name / "run"):  # its prediction was made before it, and stays
        record = record_with_predictions(path)
        told = record["held_out"]["prediction"]
    else:
        write_json(path, record)
    (measured,) = train_all([held_out], args)
    record["held_out"] |= as_dict(held_out, measured)
    runs.append(measured)
    fits = fits_of(runs, args.exponents)
    record["fits"] = fits_as_dict(fits)
    rows = predicted_rows(f"held out: {held_out.name}", told, measured)
    if target is not None:
        record["target"] = {**vars(target), "prediction": predictions(fits, runs, target)}
        rows += predicted_rows("target", record["target"]["prediction"])
    write_json(path, record)
    print(markdown_table(["run", "source", "bits per byte, 90%", "loss, nats per token", "measured"], rows, left=2))
    print(f"wrote {path}")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    target = load_model_shape(args.model)
    fitted, held_out = planned(args, target)
    ladder = [*fitted, held_out]
    check_output_folder("--output", args.output)
    check_data(args, target, ladder)
    print(table_of(ladder), flush=True)
    if args.dry_run:
        return
    write_ladder(ladder, args)
    climb(args, fitted, held_out, None if args.target_tokens is None else size_of(target, args.target_tokens))


if __name__ == "__main__":
    sys.exit(main())
