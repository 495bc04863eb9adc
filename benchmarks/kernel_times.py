#!/usr/bin/env python3
"""How fast one GPU does what a training step is made of: the kernels and layers of 30b-a3b, beside what they could be.

    python benchmarks/kernel_times.py --output kernels.jsonl

Prints a line of JSON for each kernel as soon as it is measured, in order of worth, and writes it to --output. Shapes are
those of 30b-a3b with ds_configs/a100_256.json; --small takes tiny ones, for a machine without a GPU. A kernel that fails
has a line with its reason, and the others follow. What does not fit into {limit:.0f} s is said to be left out.
"""

from __future__ import annotations

import time

BEGUN = time.monotonic()  # before the imports, which take a third of the time

import argparse  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.kernel_cases.attention import attention_cases  # noqa: E402
from benchmarks.kernel_cases.expert_rows import row_cases  # noqa: E402
from benchmarks.kernel_cases.layers import OneRank, loss_cases, moe_cases  # noqa: E402
from benchmarks.kernel_cases.matmuls import grouped_cases, matmul_cases  # noqa: E402
from benchmarks.kernel_cases.measuring import CUDA, Case, NotPossible, Sizes, flagship, synchronize, tiny  # noqa: E402
from benchmarks.kernel_cases.memory_and_host import (  # noqa: E402
    host_copy_cases,
    host_read_cases,
    launch_cases,
    streaming_cases,
)
from recipe.base.arguments import output_file  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402

LIMIT_S = 80.0  # from the start of the process
GPU_LOST = 70  # exit code, as of the checks in tests/gpu


def cases(sizes: Sizes, group: OneRank) -> list[Case]:
    """All, in order of worth; those that cost more than they are worth at the end."""
    ordered = [
        *matmul_cases(sizes),
        *grouped_cases(sizes),
        *attention_cases(sizes),
        *streaming_cases(sizes),
        *launch_cases(sizes),
        *host_read_cases(sizes),
        *loss_cases(sizes),
        *row_cases(sizes),
        *moe_cases(sizes, group),
        *host_copy_cases(sizes),
    ]
    return sorted(ordered, key=lambda case: case.late)


def reason(error: Exception) -> str:
    """Why a case has no figure, in a line."""
    if isinstance(error, NotPossible):
        return f"not possible here: {error}"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def gpu_takes_work() -> bool:
    try:
        synchronize()
    except RuntimeError:
        return False
    return True


def lines(of: Iterable[Case], left_s: Callable[[], float], group: OneRank) -> Iterable[dict[str, Any]]:
    """A line for each case, as it is measured; after a loss of the GPU every further line says so."""
    lost: str | None = None
    for case in of:
        if lost is not None:
            yield case.line(failed=lost)
        elif case.cost_s > left_s():
            yield case.line(
                failed=f"left out: it may take {case.cost_s:.0f} s, and {max(0.0, left_s()):.0f} s were left"
            )
        else:
            try:
                line = case.line(**case.measure())
            except Exception as error:
                line = case.line(failed=reason(error))
                if not gpu_takes_work():
                    group.abandon()
                    lost = f"not measured: the GPU takes no more work after {case.kernel}, {case.case}"
            yield line
            if "failed" in line:
                gc.collect()  # what a traceback had in memory; not after each case, for it takes 0.4 s
            if CUDA and lost is None:
                torch.cuda.empty_cache()


def described(shape: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int | float) else f"{name} {value}"
        for name, value in shape.items() if value is not None
    )  # fmt: skip


def markdown(measured: Sequence[dict[str, Any]]) -> str:
    """The table of the kernels from a result's lines, and a sentence for each that has no figure."""

    def number(line: dict[str, Any], name: str, unit: float, digits: int = 0) -> str:
        return "" if line.get(name) is None else f"{line[name] / unit:,.{digits}f}"

    rows = [
        [line["kernel"], line["case"], line["pass"], described(line["shape"]), number(line, "seconds", 1e-3, 3),
         number(line, "flops_per_s", 1e12), number(line, "bytes_per_s", 1e9), number(line, "peak_gib", 1, 1), str(line["runs"])]
        for line in measured if "seconds" in line
    ]  # fmt: skip
    head = ["kernel", "case", "pass", "shape", "ms", "TFLOP/s", "GB/s", "peak GiB", "runs"]
    failed = [f"- {line['kernel']}, {line['case']}, {line['pass']} ({described(line['shape'])}): {line['failed']}."
              for line in measured if "failed" in line]  # fmt: skip
    return "\n".join([markdown_table(head, rows, left=4), *(["", *failed] if failed else [])])


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.format(limit=LIMIT_S), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=output_file, help="write the lines there too, each as it is measured")
    parser.add_argument(
        "--small", action="store_true", help="tiny shapes and no time limit; on CPU where there is no GPU"
    )
    parser.add_argument(
        "--after", type=int, default=0, help=argparse.SUPPRESS
    )  # so many that an earlier process has measured
    args = parser.parse_args(argv)
    if not CUDA and not args.small:
        raise UserError("there is no GPU here; give --small for tiny shapes on the CPU")
    sizes = tiny() if args.small else flagship()
    if args.output is not None:
        args.output.write_text("")
    lost = False
    with OneRank() as group:
        all_cases = cases(sizes, group)[args.after :]
        for line in lines(all_cases, lambda: float("inf") if args.small else LIMIT_S + BEGUN - time.monotonic(), group):
            text = json.dumps(line)
            print(text, flush=True)
            if args.output is not None:
                with args.output.open("a", encoding="utf-8") as handle:
                    handle.write(text + "\n")
            lost = lost or "the GPU takes no more work" in line.get("failed", "")
    return GPU_LOST if lost else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # what libraries do at the end is not measured, and some abort in it
