#!/usr/bin/env python3
"""Documents that attend to themselves alone against plain causal attention over packed sequences.

Two tiny models train on the same sequences in turn, in one process: the time of a step, and the held-out loss
after --steps of them, each evaluated as it was trained. Prints JSON. One thread on CPU; bf16 on a GPU.
example: python benchmarks/packing.py --tokens work/quickstart/tokens
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import torch  # noqa: E402

from benchmarks.moe_layer import machine, report, tiny_run  # noqa: E402
from recipe.base.arguments import positive_int  # noqa: E402
from recipe.base.errors import exit_on_user_error  # noqa: E402
from recipe.base.settings import Compute  # noqa: E402
from recipe.data.loader import BatchOrder  # noqa: E402
from recipe.data.mixture import Stretch  # noqa: E402
from recipe.data.token_folder import TokenFolder  # noqa: E402

SEQ_LENGTH, MICRO_BATCH, WARMUP = 512, 4, 5


def compare(tokens: TokenFolder, steps: int) -> dict[str, Any]:
    from recipe.data.batch import make_batch
    from recipe.engine.step import run_step, summed_loss_of
    from recipe.evaluation.held_out import evaluate_source

    train, eod_id = tokens.sources("train"), tokens.tokenizer["eod_id"]
    order = BatchOrder(train, [Stretch(0, {s.name: float(s.num_tokens) for s in train})], SEQ_LENGTH, seed=0)
    runs = {document: tiny_run(SEQ_LENGTH, MICRO_BATCH, order.names) for document in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(1, steps + 1):
        sequences, sources, _ = order.micro_batch((step - 1) * MICRO_BATCH, 0, 0, 1, MICRO_BATCH)
        for document, (engine, control) in runs.items():
            batch = make_batch(sequences, sources, eod_id=eod_id, pad_id=None, document_attention=document)
            start = time.perf_counter()
            loss, _ = run_step(engine, control, Compute(), [batch], step=step, observing=False, update_bias=True)
            loss.item()  # waits for a GPU
            if step > WARMUP:
                seconds[document].append(time.perf_counter() - start)
    held_out = {}
    for document, (engine, _) in runs.items():
        engine.eval()
        held_out[document] = {
            source.name: evaluate_source(
                lambda inputs, targets, engine=engine: summed_loss_of(engine, Compute(), inputs, targets),  # type: ignore[misc]
                source, seq_length=SEQ_LENGTH, batch_size=8, device=engine.device,
                eod_id=eod_id if document else None,
            )["loss"]
            for source in tokens.sources("held_out")
        }  # fmt: skip
    medians = {document: statistics.median(found) for document, found in seconds.items()}
    name = {False: "causal", True: "document"}
    return {
        "steps": steps,
        "seq_length": SEQ_LENGTH,
        "mean_document_tokens": round(sum(s.num_tokens for s in train) / sum(_documents(s) for s in train)),
        "milliseconds_per_step": {name[d]: round(1e3 * m, 1) for d, m in medians.items()},
        "document_over_causal": round(medians[True] / medians[False], 3),
        "held_out_loss": {name[d]: {s: round(v, 4) for s, v in found.items()} for d, found in held_out.items()},
    }


def _documents(source: Any) -> int:
    return sum(sum(1 for _ in shard.documents()) for shard in source.shards)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", required=True, type=Path, help="output folder of data_prep/tokenize_corpus.py")
    parser.add_argument("--steps", type=positive_int, default=200, help="of training (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the JSON there too")
    args = parser.parse_args(argv)
    if args.steps <= WARMUP:
        parser.error(f"--steps must exceed the {WARMUP} that are not timed")
    tokens = TokenFolder(args.tokens)
    from recipe.engine.session import session

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    with session():
        result = {**machine(), **compare(tokens, args.steps)}
    report(result, args.output)


if __name__ == "__main__":
    sys.exit(main())
