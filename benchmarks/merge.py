#!/usr/bin/env python3
"""Whether merged checkpoints of a constant learning rate are better than the last one, and how near they come to a decay.

    python benchmarks/merge.py --tokens work/quickstart/tokens --run RUN --output benchmarks/results/merge.json

A tiny model is trained at a constant learning rate, in small batches and past the steep part of its curve. Then its last
quarter is trained again on the same sequences, with a linear decay to zero. The checkpoints of that quarter are merged with the
weights of a linear decay; the quarter is fixed beforehand, and so is the half-life of the moving average, whose mean age is that
decay's. Several seeds, of weights and of the order of data. fp32 on CPU, in a loop of PyTorch's own with the averages of
recipe/checkpoints. Bits per byte are of the same held-out sequences. `--run` is a run of two checkpoints at least, of which
recipe/merge.py's own time and memory are taken. Prints JSON.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.moe_layer import machine, report  # noqa: E402
from benchmarks.shape_ladder import Trained  # noqa: E402
from recipe.base.arguments import output_file, positive_int  # noqa: E402
from recipe.base.errors import UserError, exit_on_user_error  # noqa: E402
from recipe.base.hardware import GIB  # noqa: E402
from recipe.base.model_shape import load_model_shape  # noqa: E402
from recipe.base.run_config.learning_rate import learning_rate  # noqa: E402
from recipe.base.run_config.schedule import Schedule  # noqa: E402
from recipe.base.strict import load_json  # noqa: E402
from recipe.base.tables import markdown_table  # noqa: E402
from recipe.checkpoints.decay_weights import decay_weights  # noqa: E402
from recipe.checkpoints.merging import weighted_average  # noqa: E402
from recipe.data.batch import make_batch  # noqa: E402
from recipe.data.loader import BatchOrder  # noqa: E402
from recipe.data.mixture import Stretch  # noqa: E402
from recipe.data.token_folder import Source, TokenFolder  # noqa: E402

LAYERS, SEQ_LENGTH, BATCH = 2, 64, 4
TOKENS = SEQ_LENGTH * BATCH
WARMUP, WINDOW = 1 / 20, 1 / 4  # shares of the steps
CHECKPOINTS = 9  # that are merged, the first where the decay begins
HALF_LIFE = 0.35  # of the window's tokens
HELD_OUT = 48  # sequences of each source
WAYS = {"last": "the last checkpoint", "merged": "merged", "average": "moving average", "decayed": "decayed instead"}

Weights = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


class Sequences:
    """Batches of sources in proportion to their sizes."""

    def __init__(self, sources: Sequence[Source], seed: int, seq_length: int = SEQ_LENGTH, batch: int = BATCH):
        self.sequences_per_batch = batch
        self.order = BatchOrder(
            sources, [Stretch(0, {s.name: float(s.num_tokens) for s in sources})], seq_length, seed=seed
        )

    def batch(self, step: int) -> Pair:
        size = self.sequences_per_batch
        sequences, numbers, _ = self.order.micro_batch(step * size, 0, 0, 1, size)
        batch = make_batch(sequences, numbers, eod_id=0, pad_id=None, document_attention=False)
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in (batch.tokens, batch.targets))
        return tokens, targets


class Judge:
    """Bits per byte of held-out sequences, by source."""

    def __init__(self, folder: TokenFolder, seq_length: int = SEQ_LENGTH, batch: int = BATCH):
        self.batches = {
            source.name: [Sequences([source], 0, seq_length, batch).batch(n) for n in range(HELD_OUT // batch)]
            for source in folder.sources("held_out")
        }
        self.tokens_per_byte = {s.name: s.num_tokens / s.text_bytes for s in folder.sources("held_out")}

    def of(self, trained: Trained) -> dict[str, float]:
        scale = {name: ratio / math.log(2) for name, ratio in self.tokens_per_byte.items()}
        return {name: trained.loss_of(batches) * scale[name] for name, batches in self.batches.items()}


def weights_of(trained: Trained) -> Weights:
    return {name: values.clone() for name, values in trained.model.state_dict().items()}


def merged(checkpoints: Sequence[tuple[int, Weights]]) -> Weights:
    """The average of weights after so many tokens, by a linear decay."""
    shares = decay_weights("linear", [tokens for tokens, _ in checkpoints])
    first = checkpoints[0][1]
    return {name: weighted_average([weights[name] for _, weights in checkpoints], shares) for name in first}


def measured(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Bits per byte by way and source."""
    torch.set_num_threads(1)
    folder = TokenFolder(args.tokens)
    judge = Judge(folder)
    shape = load_model_shape(args.model).model_copy(
        update={"num_hidden_layers": LAYERS, "vocab_size": folder.tokenizer["vocab_size"]}
    )
    window = round(WINDOW * args.steps)
    common: dict[str, Any] = {
        "total_tokens": args.steps * TOKENS,
        "peak_lr": args.rate,
        "warmup_tokens": round(WARMUP * args.steps) * TOKENS,
    }
    constant = Schedule(**common, min_lr=args.rate)
    decay = Schedule(**common, min_lr=0.0, kind="wsd", decay_tokens=window * TOKENS)
    trained, sequences = Trained(shape, seed), Sequences(folder.sources("train"), seed)
    share = 1 - 0.5 ** (1 / (HALF_LIFE * window))
    average = weights_of(trained)
    checkpoints: list[tuple[int, Weights]] = []
    found: dict[str, dict[str, float]] = {}
    saved: Any = None
    for step in range(1, args.steps + 1):
        trained.step(*sequences.batch(step - 1), learning_rate(constant, step * TOKENS))
        for name, values in trained.model.state_dict().items():
            average[name].lerp_(values, share)
        since = step - (args.steps - window)
        if since >= 0 and since % (window // (CHECKPOINTS - 1)) == 0:
            checkpoints.append((step * TOKENS, weights_of(trained)))
        if since == 0:
            saved = deepcopy((trained.model.state_dict(), trained.optimizer.state_dict()))
    found["last"] = judge.of(trained)
    for way, weights in (("merged", merged(checkpoints)), ("average", average)):
        trained.model.load_state_dict(weights)
        found[way] = judge.of(trained)
    trained.model.load_state_dict(saved[0])
    trained.optimizer.load_state_dict(saved[1])
    for step in range(args.steps - window + 1, args.steps + 1):
        trained.step(*sequences.batch(step - 1), learning_rate(decay, step * TOKENS))
    return found | {"decayed": judge.of(trained)}


def compare(seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """By source and way: the mean over seeds, and by how much it is below the last checkpoint, at least too."""
    compared: dict[str, Any] = {}
    for source in seeds[0]["last"]:
        compared[source] = {}
        for way in WAYS:
            below = [of["last"][source] - of[way][source] for of in seeds]
            compared[source][way] = {
                "mean": statistics.mean(of[way][source] for of in seeds),
                "below_last": statistics.mean(below),
                "least_below_last": min(below),
            }
    return compared


def timed_merge(run: Path) -> dict[str, float]:
    """What recipe/merge.py takes for the two newest checkpoints of a run, checksums and start included."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        output, begun = Path(folder) / "merged", time.perf_counter()
        command = [sys.executable, ROOT / "recipe/merge.py", "--run", run, "--last", "2", "--output", output]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"merge.py failed:\n{said.read()}")
        size = sum(path.stat().st_size for path in output.glob("checkpoints/step_*/*"))
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss * 1024 / GIB, 2),
        "checkpoint_gib": round(size / GIB, 4),
    }


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [source, WAYS[way], f"{of['mean']:.4f}", f"{of['below_last']:+.4f}", f"{of['least_below_last']:+.4f}"]
        for source, ways in result["compared"].items()
        for way, of in ways.items()
    ]
    head = ["held-out", f"{result['steps']} steps of {result['model']}", "bits per byte", "below the last", "least of all seeds"]  # fmt: skip
    return f"{result['device']}, torch {result['torch']}, {result['date']}: means of {len(result['seeds'])} seeds.\n\n{markdown_table(head, rows, left=2)}"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument("--run", type=Path, help="a run folder; time recipe/merge.py with it (default: no timing)")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "recipe/configs/models/tiny", help="(default: %(default)s)"
    )
    parser.add_argument("--steps", type=positive_int, default=256, help="of a run (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-2, help="learning rate (default: %(default)s)")
    parser.add_argument("--seeds", type=positive_int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=2, help="seeds at a time (default: %(default)s)")
    parser.add_argument("--output", type=output_file, help="write the JSON there too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a result as Markdown, run nothing")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(load_json(args.table)))
        return
    if args.tokens is None:
        raise UserError("--tokens is missing; give the output folder of tokenize_corpus.py")
    if args.steps % (every := round((CHECKPOINTS - 1) / WINDOW)):
        raise UserError(f"--steps {args.steps} is no multiple of {every}, so that checkpoints are equally far apart")
    folder = TokenFolder(args.tokens)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        seeds = list(pool.map(partial(measured, args), range(args.seeds)))
    result = {
        **machine(),
        "data": {"train": folder.sizes("train"), "vocabulary": folder.tokenizer["vocab_size"]},
        "model": f"{args.model.name}, {LAYERS} layers",
        "steps": args.steps,
        "tokens_per_step": TOKENS,
        "rate": args.rate,
        "merged_checkpoints": CHECKPOINTS,
        "compared": compare(seeds),
        "seeds": seeds,
        "merge": timed_merge(args.run) if args.run else None,
    }
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
