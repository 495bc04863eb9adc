#!/usr/bin/env python3
"""The order that pack_sequences.py gives documents against the order they had and against best-fit decreasing with padding.

Prints JSON: for each source and sequence length, documents that fit and are cut, padding, and seconds of CPU, the median of
--repeats. Best-fit decreasing (arXiv 2404.10830) is in Python here, by bisection over the room that is left.
example: python benchmarks/packing_order.py --tokens work/quickstart/tokens --output benchmarks/results/packing_order.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose data_prep.py would hide the package

import numpy as np  # noqa: E402

from benchmarks.moe_layer import machine, report  # noqa: E402
from data_prep.packing.sequences import cuts_of, order_of  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402


def best_fit_padding(lengths: np.ndarray, seq_length: int) -> int:
    """Tokens of padding where documents are put, the largest first, into the sequence with the least room for them."""
    sizes = np.sort((lengths - 1) % seq_length + 1)[::-1]  # of a longer document, what is left beside whole sequences
    rooms: list[int] = []
    for size in sizes.tolist():
        place = bisect_left(rooms, size)
        room = rooms.pop(place) if place < len(rooms) else seq_length
        if room > size:
            insort(rooms, room - size)
    return sum(rooms)


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of the seconds of CPU."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return result, statistics.median(seconds)


def compare(lengths: np.ndarray, seq_length: int, repeats: int) -> dict[str, Any]:
    order, ours_s = timed(lambda: order_of(lengths, seq_length), repeats)
    padding, best_fit_s = timed(lambda: best_fit_padding(lengths, seq_length), repeats)
    fits = lengths <= seq_length
    return {
        "documents": lengths.size,
        "tokens": int(lengths.sum()),
        "fitting_documents": int(fits.sum()),
        "as_they_lay": cuts_of(lengths, seq_length),
        "packed": {**cuts_of(lengths[order], seq_length), "cpu_s": ours_s},
        "best_fit_with_padding": {"padding_tokens": padding, "cpu_s": best_fit_s},
    }


def markdown(result: dict[str, Any]) -> str:
    """Documents that fit and are cut, of those that fit."""

    def cut(of: dict[str, Any], order: str) -> str:
        documents = of[order]["documents_cut"]
        return f"{documents:,} ({documents / of['fitting_documents']:.2%})"

    rows = [
        [
            source, f"{int(seq_length):,}", f"{of['documents']:,}", f"{of['fitting_documents']:,}", cut(of, "as_they_lay"),
            cut(of, "packed"), f"{of['best_fit_with_padding']['padding_tokens']:,}",
        ]
        for source, lengths in result["packed"].items()
        for seq_length, of in lengths.items()
    ]  # fmt: skip
    head = ["source", "sequence length", "documents", "that fit", "of these cut, as they lay", "packed", "padding that best fit would add, tokens"]  # fmt: skip
    return f"{result['device']}, {result['date']}.\n\n{markdown_table(head, rows)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="output folder of tokenize_corpus.py")
    parser.add_argument(
        "--seq-length", type=positive_int, nargs="+", default=[4096, 32768], help="(default: %(default)s)"
    )
    parser.add_argument("--repeats", type=positive_int, default=3, help="of each timing (default: %(default)s)")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    if args.tokens is None:
        raise UserError("--tokens is missing; give the output folder of tokenize_corpus.py")
    packed = {
        source.name: {
            seq_length: compare(
                np.concatenate([shard.lengths for shard in source.shards]).astype(np.int64), seq_length, args.repeats
            )
            for seq_length in args.seq_length
        }
        for source in TokenFolder(args.tokens).sources("train")
    }
    report({**machine(), "packed": packed}, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
