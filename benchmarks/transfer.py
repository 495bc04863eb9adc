#!/usr/bin/env python3
"""Which hyperparameters move with size: sweeps on tiny models of one family, judged by held-out bits per byte.

    python benchmarks/transfer.py --tokens work/tokens --output benchmarks/results/transfer.json

Models of several widths are trained on the same tokens in the same order, at several learning rates, and at one width on
more tokens, in smaller batches, and with other initial weights, rotary bases and rates of the expert bias. The optimum of a sweep is the
vertex of a parabola through the logarithms around its best run; where the best run is the first or the last, the sweep only
bounds it. Schedules are those of recipe/scaling/rungs.py, and the learning rate is compared with Step Law's
(recipe/scaling/transfer.py), which was fitted on models a thousand times as large. A result that was
cut short is continued. fp32 on one CPU core, in a loop of PyTorch's own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.merge import Judge, Sequences  # noqa: E402
from benchmarks.moe_layer import machine, report  # noqa: E402
from benchmarks.shape_ladder import BIAS_RATE, Trained  # noqa: E402
from recipe.base.arguments import output_file  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.files import write_text  # noqa: E402
from recipe.base.model_shape import ModelShape, load_model_shape  # noqa: E402
from recipe.base.run_config.learning_rate import learning_rate  # noqa: E402
from recipe.base.run_config.schedule import Schedule  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402
from recipe.scaling.family import member  # noqa: E402
from recipe.scaling.rungs import finished_schedule  # noqa: E402
from recipe.scaling.transfer import STEP_LAW, run_of  # noqa: E402

TARGET = ROOT / "recipe/configs/models/tiny"
SEQ_LENGTH, BATCH = 128, 16  # 2,048 tokens a step
TOKENS = 524_288  # of a run; 256 steps
LAST_STEPS = 32  # whose loads of the experts count
VARIED = {
    "lr": "learning rate",
    "std_factor": "factor on the initial deviation",
    "rope_theta": "rotary base",
    "bias_rate": "bias update rate",
    "seed": "seed",
}


Runs = dict["Setting", dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What one run is made of; factors are on what the family and its model say."""

    width: int = 64
    tokens: int = TOKENS
    batch: int = BATCH
    lr: float = 3e-3
    std_factor: float = 1.0
    rope_theta: float = 10_000.0
    bias_rate: float = BIAS_RATE
    seed: int = 0

    def shape(self, vocabulary: int) -> ModelShape:
        shape = member(load_model_shape(TARGET), self.width)
        rope = shape.rope_parameters.model_copy(update={"rope_theta": self.rope_theta})
        std = shape.initializer_range * self.std_factor
        return shape.model_copy(update={"vocab_size": vocabulary, "rope_parameters": rope, "initializer_range": std})

    @property
    def step_tokens(self) -> int:
        return self.batch * SEQ_LENGTH

    def schedule(self) -> Schedule:
        return Schedule(**finished_schedule(self.tokens, self.lr))


BASE = Setting()


def at(varied: str, values: Iterable[float], **changes: Any) -> tuple[str, tuple[Setting, ...]]:
    """A sweep: what varies, and its runs."""
    return varied, tuple(replace(BASE, **changes, **{varied: value}) for value in values)


# A run that several sweeps share is trained once.
SWEEPS = {
    "width 32": at("lr", (3e-3, 6e-3, 1.2e-2), width=32),
    "width 64": at("lr", (1.5e-3, 3e-3, 6e-3)),
    "width 96": at("lr", (7.5e-4, 1.5e-3, 3e-3, 6e-3), width=96),
    "seed": at("seed", range(3)),
    "initial weights": at("std_factor", (0.25, 1.0, 4.0)),
    "bias update rate": at("bias_rate", (0.0, 1e-3, 1e-2)),
    "rotary base": at("rope_theta", (10_000.0, 500_000.0)),
    "a quarter of the batch": at("lr", (7.5e-4, 1.5e-3, 3e-3), batch=BATCH // 4),
    "3 times the tokens": at("lr", (1.5e-3, 3e-3, 6e-3), tokens=3 * TOKENS),
}


@torch.no_grad()
def largest_load(trained: Trained) -> float:
    """Of the busiest expert, over the mean load, in the layer where that is most."""
    loads = []
    for router in trained.routers:
        counts_E = torch.bincount(trained.chosen[router].flatten(), minlength=router.e_score_correction_bias.shape[0])  # type: ignore[union-attr,arg-type]
        loads.append(float(counts_E.max() / counts_E.float().mean()))
    return max(loads)


def run(setting: Setting, folder: TokenFolder, judge: Judge) -> dict[str, Any]:
    """Bits per byte by source at the end, and the largest load of an expert in the last steps."""
    begun, schedule = time.process_time(), setting.schedule()
    trained = Trained(setting.shape(folder.tokenizer["vocab_size"]), setting.seed, setting.bias_rate)
    sequences = Sequences(folder.sources("train"), 0, SEQ_LENGTH, setting.batch)
    steps, loads = round(setting.tokens / setting.step_tokens), []
    for step in range(1, steps + 1):
        trained.step(*sequences.batch(step - 1), learning_rate(schedule, step * setting.step_tokens))
        if step > steps - LAST_STEPS:
            loads.append(largest_load(trained))
    bits = judge.of(trained)
    return {
        "bits_per_byte": {name: round(value, 4) for name, value in bits.items()},
        "mean": round(statistics.mean(bits.values()), 4),
        "largest_load": round(statistics.mean(loads), 2),
        "cpu_s": round(time.process_time() - begun, 1),
    }


def measured_before(output: Path | None) -> Runs:
    """The runs that a result on disk has."""
    if output is None or not output.exists():
        return {}
    names = {field.name for field in fields(Setting)}
    runs = load_json(output)["runs"]
    return {Setting(**{key: run[key] for key in names}): {key: run[key] for key in run.keys() - names} for run in runs}


def optimum(values: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """Where a sweep's loss is least: the vertex of a parabola in the logarithm through the best run and its neighbours.

    Returns:
        `best`: the value with the least loss; `bound`: whether the optimum is `above` or `below` it, where it is the last or the
        first; else `optimum`, and `factor_of_two`: the share that the loss rises by at twice or half of it, by the parabola.
    """
    x, y = np.log(values), np.asarray(losses)
    middle = int(y.argmin())
    best = {"best": values[middle]}
    if middle in (0, len(x) - 1):
        return best | {"bound": "above" if middle else "below"}
    near = slice(middle - 1, middle + 2)
    curvature, slope, constant = np.polyfit(x[near] - x[middle], y[near], 2)
    vertex = -slope / (2 * curvature)
    cost = curvature * math.log(2) ** 2 / (constant + slope * vertex / 2)
    return best | {"optimum": float(np.exp(x[middle] + vertex)), "factor_of_two": float(cost)}


def summary(runs: Runs, vocabulary: int) -> dict[str, Any]:
    """Of each sweep whose runs are all there its values, losses and optimum, and what Step Law says of a learning rate."""
    sweeps: dict[str, Any] = {}
    for name, (varied, settings) in SWEEPS.items():
        if not all(setting in runs for setting in settings):
            continue
        values = [getattr(setting, varied) for setting in settings]
        sweep = {"varied": varied, "values": values, "mean": [runs[setting]["mean"] for setting in settings]}
        if varied in ("lr", "std_factor"):
            sweep |= optimum(values, sweep["mean"])
        if varied == "lr":
            own = run_of(settings[0].shape(vocabulary), settings[0].tokens, SEQ_LENGTH)
            sweep |= {"parameters": own.parameters, "step_law": STEP_LAW.learning_rate(own)}
        sweeps[name] = sweep | {"largest_load": [runs[setting]["largest_load"] for setting in settings]}
    return sweeps


def result_of(runs: Runs, folder: TokenFolder) -> dict[str, Any]:
    vocabulary = folder.tokenizer["vocab_size"]
    return {
        **machine(),
        "data": {"train": folder.sizes("train"), "vocabulary": vocabulary},
        "seq_length": SEQ_LENGTH,
        "cpu_s": round(sum(measured["cpu_s"] for measured in runs.values()), 1),
        "sweeps": summary(runs, vocabulary),
        "runs": [asdict(setting) | measured for setting, measured in runs.items()],
    }


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def pairs(values: Sequence[float], measured: Sequence[float], digits: int) -> str:
    return ", ".join(f"{number(value)}: {m:.{digits}f}" for value, m in zip(values, measured, strict=True))


def row(name: str, sweep: dict[str, Any]) -> list[str]:
    bound = f"{sweep['bound']} {number(sweep['best'])}" if "bound" in sweep else ""
    return [
        name,
        VARIED[sweep["varied"]],
        pairs(sweep["values"], sweep["mean"], 3),
        number(sweep["optimum"]) if "optimum" in sweep else bound,
        f"{sweep['factor_of_two']:.1%}" if "factor_of_two" in sweep else "",
        number(sweep["step_law"]) if "step_law" in sweep else "",
    ]


def markdown(result: dict[str, Any]) -> str:
    sweeps = result["sweeps"]
    seeds, bias = sweeps["seed"]["mean"], sweeps["bias update rate"]
    intro = (
        f"{result['device']}, torch {result['torch']}, {result['date']}: {len(result['runs'])} runs, {result['cpu_s'] / 60:.0f} "
        f"minutes of CPU. Where nothing else is said, the width is {BASE.width}, with {BASE.tokens:,} tokens in steps of "
        f"{BASE.step_tokens:,} at a learning rate of {BASE.lr:g}. {len(seeds)} seeds differ by {max(seeds) - min(seeds):.3f}. "
        f"The busiest expert over the mean, by the rate of the bias: {pairs(bias['values'], bias['largest_load'], 2)}."
    )
    head = [
        "sweep",
        "varied",
        "held-out bits per byte, mean of the languages",
        "optimum",
        "twice or half costs",
        "Step Law",
    ]
    return f"{intro}\n\n{markdown_table(head, [row(name, s) for name, s in sweeps.items() if name != 'seed'], left=3)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument(
        "--output",
        type=output_file,
        help="write the JSON there too, after each run; a run that it has already is not repeated",
    )
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    if args.tokens is None:
        raise UserError("--tokens is missing; give the output folder of tokenize_corpus.py")
    torch.set_num_threads(1)
    folder, runs = TokenFolder(args.tokens), measured_before(args.output)
    judge = Judge(folder, SEQ_LENGTH, BATCH)
    for setting in dict.fromkeys(setting for _, settings in SWEEPS.values() for setting in settings):
        if setting not in runs:
            runs[setting] = run(setting, folder, judge)
            print(f"{setting}: {runs[setting]}", file=sys.stderr, flush=True)
            if args.output is not None:
                write_text(args.output, json.dumps(result_of(runs, folder), indent=1) + "\n")
    report(result_of(runs, folder), args.output)


if __name__ == "__main__":
    sys.exit(main())
