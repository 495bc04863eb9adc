#!/usr/bin/env python3
"""A whole training step on one GPU: this recipe beside what a user would pick instead.

    python benchmarks/train_step.py --output benchmarks/results/train_step.json --seconds 400

The same shape, batch, precision and data for all (benchmarks/contenders.py, in order of what a result is worth), each in
a process of its own: tokens/s, model FLOPs utilisation (of the bf16 matmul that this GPU reaches here, and of its
datasheet), peak memory, for one of each software the time by kind of kernel and part of the model, and for ours what the
planner says of the same slice. A contender that fails, or that no time is left for, is named with its reason; the JSON is
written anew after each. Defaults: with a GPU, as many layers of 7b-a1b and sequences of 4,096 as all contenders have room
for; without one, two layers of the tiny model, which shows that all of it works, and nothing of speed.

Routing. Each contender takes steps on two kinds of tokens, the same for all:
  uniform  every token of the vocabulary alike. Routers with random weights spread these nearly evenly.
  text     tokens as often as words are in text: 1 / (rank + 2.7), Zipf's law with Mandelbrot's offset (Piantadosi 2014,
           doi 10.3758/s13423-014-0585-6: exponent near 1, offset near 2.7), rank being the token's number.
`load` is what ours counted: assignments of a layer's busiest expert over the mean of its experts, of the worst layer.
A random router sends every occurrence of a token the same way, so text's frequent tokens make busy experts: the skew of
the first steps of a training. It says how a step's time answers to experts of unequal size; it does not say how unequal
those of a trained router are, which learns to spread frequent tokens (arXiv 2408.15664 reports the busiest expert of trained
routers as MaxVio, which is this load less 1). What is measured for the two kinds is time at two loads, with nothing forced
on a router.

The planner's imbalance is of ranks, not of experts: a single rank has every expert, so its load is 1 whatever the routing,
and with that the plan of the measured load is made.

The slice of the flagship has as many layers of 30b-a3b as the planner finds room for on 80 GB under ZeRO-1, with the
micro-batch of its shipped file, recomputed without keeping anything so that there is room for most layers. The calibration of a plan needs the experts, rows and vocabulary of
what is planned; contenders are not compared there, because its vocabulary's head would be half of so few layers' FLOPs.
"""

from __future__ import annotations

import time

BEGUN = time.monotonic()  # before the imports, which take half a minute where no file is in memory yet

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.contenders import CONTENDERS, FLAGSHIP  # noqa: E402
from benchmarks.gpu_run.machine import versions  # noqa: E402
from benchmarks.moe_layer import machine  # noqa: E402
from benchmarks.step_run import attempt as processes  # noqa: E402
from benchmarks.step_run.contender import CUDA, Case  # noqa: E402
from benchmarks.step_run.plans import MODELS, facts_of, flagship, with_plans, with_rates  # noqa: E402
from benchmarks.step_run.tables import markdown  # noqa: E402
from recipe.base.arguments import output_file, positive_int, positive_seconds  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.files import write_json  # noqa: E402
from recipe.base.hardware import GIB, accelerator_of  # noqa: E402
from recipe.base.model_shape import load_model_shape  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402

PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "transformer-engine", "nv-grouped-gemm", "grouped-gemm", "flash-attn", "triton")  # fmt: skip
LIMIT_S = 240.0  # for one contender
LEAST_S = 25.0 if CUDA else 3.0  # that the quickest contender takes, imports not counted


class Benchmark:
    """The contenders, one after another, and a result that is whole after each."""

    def __init__(self, case: Case, model: str, steps: int, seconds: float, command: str, output: Path | None):
        self._case, self._steps, self._seconds, self._output = case, steps, seconds, output
        self._flagship: Case | None = None
        self._attempts: list[processes.Attempt] = []
        self._known = accelerator_of(torch.cuda.get_device_name()) if CUDA else None
        self.result: dict[str, Any] = {
            **machine(),
            "packages": versions(PACKAGES),
            "command": command,
            "case": facts_of(case, model),
            "window": {
                kind: {"warm_up": steps_before, "measured": steps} for kind, steps_before in processes.WARM_UP.items()
            },
            "seconds": seconds,
            "contenders": {},
            "unfinished": [],
        }

    def left_s(self) -> float:
        """Until all must be over; the last seconds are for ending a process and writing."""
        return BEGUN + self._seconds - time.monotonic() - 2

    def case_of(self, name: str) -> Case:
        if name != FLAGSHIP:
            return self._case
        if self._flagship is None:
            self._flagship = flagship()
        return self._flagship

    def run(self, names: list[str]) -> None:
        if processes.START == "fork":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            processes.import_modules(*names)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._run_each(names, folder)
            finally:  # Python would wait for processes that wait for this one
                for attempt in self._attempts:
                    attempt.end()

    def _run_each(self, names: list[str], folder: str) -> None:
        ahead: processes.Attempt | None = None
        for name, following in zip(names, [*names[1:], None], strict=True):
            if (left := self.left_s()) < LEAST_S:
                self._add(
                    name, {"failed": f"not measured: {max(0, left):.0f} of {self._seconds:.0f} s are left, too few"}
                )
                continue
            attempt = ahead or self._attempt(name, folder)
            attempt.begin()
            ahead = self._attempt(following, folder) if processes.START == "spawn" and following is not None else None
            self._add(name, attempt.result(min(LIMIT_S, self.left_s())))

    def _attempt(self, name: str, folder: str) -> processes.Attempt:
        self._attempts.append(processes.Attempt(name, self.case_of(name), self._steps, Path(folder)))
        return self._attempts[-1]

    def _add(self, name: str, found: dict[str, Any]) -> None:
        case = self.case_of(name)
        ceiling = found.pop("matmul_flops_per_s", None)
        if ceiling is not None:
            self.result.setdefault("matmul_flops_per_s", ceiling)
        found = with_rates(
            found, case, self.result.get("matmul_flops_per_s", 0.0), self._known and self._known.bf16_flops
        )
        found = with_plans(found, CONTENDERS[name], case, self._known)
        if (why := found.get("failed") or found.get("cut")) is not None:
            self.result["unfinished"].append(f"{name}: {why}")
        if name == FLAGSHIP:
            self.result["flagship"] = {"case": facts_of(case, "30b-a3b" if CUDA else "tiny"), **found}
        else:
            self.result["contenders"][name] = found
        print(f"{name}: {found.get('failed') or '{:,.0f} tokens/s'.format(found['tokens_per_s'])}", file=sys.stderr)
        if self._output is not None:
            write_json(self._output, self.result)


def defaults() -> tuple[int, int]:
    """Layers and sequences: transformers' loss holds whole logits in fp32 several times, 2 GiB a sequence and copy."""
    if not CUDA:
        return 2, 2
    roomy = torch.cuda.get_device_properties(0).total_memory > 120 * GIB
    return (8, 4) if roomy else (6, 2)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layers, micro_batch = defaults()
    parser.add_argument(
        "--model", type=Path, default=MODELS / ("7b-a1b" if CUDA else "tiny"), help="(default: %(default)s)"
    )
    parser.add_argument("--layers", type=positive_int, default=layers, help="that are kept (default: %(default)s)")
    parser.add_argument("--seq", type=positive_int, default=4096 if CUDA else 64, help="(default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=positive_int, default=micro_batch, help="sequences (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=8 if CUDA else 2,
        help="measured for each kind of tokens, after the warm-up (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=positive_seconds, default=600.0,
        help="for all in all; contenders that no time is left for are named (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"some of: {'; '.join(CONTENDERS)}"
    )
    parser.add_argument("--output", type=output_file, help="write the JSON there too, after each contender")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        result = load_json(args.table)
        if not isinstance(result, dict) or not {"case", "contenders", "packages"} <= result.keys():
            raise UserError(f"--table {args.table} is no result of this script; give a file that --output wrote")
        print(markdown(result))
        return
    whole = load_model_shape(args.model)
    if not whole.first_k_dense_replace < args.layers <= whole.num_hidden_layers:
        raise UserError(
            f"--layers {args.layers} must be between {whole.first_k_dense_replace + 1} and {whole.num_hidden_layers}"
        )
    if args.seq > whole.max_position_embeddings:
        raise UserError(f"--seq {args.seq} exceeds the model's {whole.max_position_embeddings}")
    case = Case(whole.model_copy(update={"num_hidden_layers": args.layers}), args.seq, args.micro_batch)
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # of the contenders
    words = argv if argv is not None else sys.argv[1:]
    command = " ".join(["python", "benchmarks/train_step.py", *words])
    benchmark = Benchmark(case, args.model.name, args.steps, args.seconds, command, args.output)
    benchmark.run([name for name in CONTENDERS if name in (args.only or CONTENDERS)])
    print(json.dumps(benchmark.result, indent=1))


if __name__ == "__main__":
    sys.exit(main())
