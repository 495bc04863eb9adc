"""Proxy runs, small ones of a large model's family: writes their configs, trains them on this host, reads their held-out loss."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import yaml

from launch.cluster.hosts import deepspeed_launcher, free_port
from recipe.base.arguments import positive_int
from recipe.base.errors import UserError
from recipe.base.files import write_text
from recipe.base.model_shape import ModelShape
from recipe.base.strict import load_json
from recipe.data.token_folder import TokenFolder
from recipe.planner.search.ds_writer import ds_config_for, text_of
from recipe.run.job import check_job
from recipe.run.records import read_evaluations, read_events
from recipe.scaling.measured import Measured
from recipe.scaling.rungs import Rung

ROOT = Path(__file__).resolve().parent.parent
STAGE = 1  # of ZeRO: small models fit whole, and gathering their weights would take most of a step


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How each run is cut into sequences and micro-batches, and on what it runs."""
    parser.add_argument("--seq", type=positive_int, default=128, help="sequence length (default: %(default)s)")
    parser.add_argument("--micro-batch", type=positive_int, default=8, help="most sequences per rank at a time (default: %(default)s)")  # fmt: skip
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus", type=positive_int, help="ranks of each run, bf16 on GPUs of this host")
    ranks.add_argument("--cpu-ranks", type=positive_int, help="ranks of each run, fp32 on this host's CPU")
    parser.add_argument(
        "--at-once", type=positive_int, default=1,
        help="runs at the same time, each on ranks of its own: as many as GPUs or cores there are over the ranks (default: %(default)s)",
    )  # fmt: skip


def files_of(rung: Rung, args: argparse.Namespace, weights: Mapping[str, float] | None = None) -> dict[Path, str]:
    """Path and text of a run's config.json, run config and ds_config.

    Args:
        weights: of the sources, `data.mixture.weights`; None for the mixture that a run config has without one.
    """
    folder, ranks = args.output.resolve() / rung.name, args.gpus or args.cpu_ranks
    per_rank = rung.batch_sequences // ranks
    micro_batch = max(m for m in range(1, min(args.micro_batch, per_rank) + 1) if per_rank % m == 0)
    ds = ds_config_for(
        rung.shape, ranks, stage=STAGE, ep_size=math.gcd(ranks, rung.shape.n_routed_experts), micro_batch=micro_batch,
        accumulation=per_rank // micro_batch, bf16=args.gpus is not None,
    )  # fmt: skip
    steps = rung.tokens // (rung.batch_sequences * args.seq)
    mixture = {} if weights is None else {"mixture": {"weights": dict(weights)}}
    run = {
        "run_dir": str(folder / "run"),
        "model": str(folder / "model"),
        "tokenizer": str(args.tokenizer.resolve()),
        "data": {"tokens": str(args.tokens.resolve()), "seq_length": args.seq, **mixture},
        "schedule": rung.schedule(),
        "numerics": {"spikes": None},  # a law is of runs that take every step; small models leave a plateau with a jump
        "checkpoint": {"every_steps": max(1, steps // 4), "keep_last": 1},
        "evaluation": {"every_steps": steps},
    }
    return {
        folder / "model" / "config.json": json.dumps(rung.shape.model_dump(mode="json"), indent=1) + "\n",
        folder / "run.yaml": yaml.safe_dump(run, sort_keys=False),
        folder / "ds_config.json": text_of(ds),
    }


def write_runs(files: Mapping[Path, str], output: Path) -> None:
    """Write the configs of all runs and check them as the trainer does; a folder with other configs is refused."""
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"--output {output} holds runs of other settings ({path}); choose another folder")
    for path, text in files.items():
        write_text(path, text)
    for path in files:
        if path.name == "run.yaml":
            check_job(path, [], path.parent / "ds_config.json", None)


def check_tokens(args: argparse.Namespace, target: ModelShape) -> TokenFolder:
    """The token folder, with held-out documents and no ids beyond the model's vocabulary."""
    folder = TokenFolder(args.tokens)
    if folder.tokenizer["vocab_size"] > target.vocab_size:
        raise UserError(f"{args.tokens} has {folder.tokenizer['vocab_size']:,} token ids and the model {target.vocab_size:,}; raise vocab_size in {args.model}/config.json")  # fmt: skip
    if not folder.sizes("held_out"):
        raise UserError(f"{args.tokens} has no held-out documents to measure a loss on; tokenize with held_out above 0")
    return folder


def is_finished(run_dir: Path) -> bool:
    return any(event["event"] == "finished" for event in read_events(run_dir))


def record_with_predictions(path: Path) -> dict[str, Any]:
    """What was written before a held-out run that is finished: its prediction was made then, and stays."""
    if not path.exists():
        raise UserError(f"{path} is missing though a held-out run is finished: its prediction is lost; restore it, or take another --output")  # fmt: skip
    record: dict[str, Any] = load_json(path)
    return record


def train_all(rungs: Sequence[Rung], args: argparse.Namespace) -> list[Measured]:
    """Train runs, `--at-once` of them at a time and the longest first, and print the loss of each as it ends.

    Raises:
        UserError: a run failed; those that had begun have ended, and no other has begun.
    """
    waiting = deque(sorted(rungs, key=lambda rung: rung.flops, reverse=True))
    measured: dict[str, Measured] = {}
    stop = Event()

    def work(slot: int) -> None:
        while not stop.is_set():
            try:
                rung = waiting.popleft()
            except IndexError:
                return
            try:
                measured[rung.name] = train(rung, args, slot)
            except BaseException:
                stop.set()
                raise
            bits = ", ".join(f"{source} {value:.4f}" for source, value in measured[rung.name].bits_per_byte.items())
            print(f"{rung.name}: bits per byte {bits}", flush=True)

    with ThreadPoolExecutor(args.at_once) as pool:
        workers = [pool.submit(work, slot) for slot in range(min(args.at_once, len(rungs)))]
        try:
            for worker in workers:
                worker.result()
        finally:
            stop.set()
    return [measured[rung.name] for rung in rungs]


def train(rung: Rung, args: argparse.Namespace, slot: int = 0) -> Measured:
    """Run a run to its end, unless it is there, and read its held-out loss.

    Args:
        slot: which of the runs at the same time it is; each has GPUs of its own.
    """
    folder = args.output.resolve() / rung.name
    if not is_finished(folder / "run"):
        words = [*_launcher(args, slot), "recipe/train.py", "--config", folder / "run.yaml",
                 "--deepspeed_config", folder / "ds_config.json", "--resume", "auto"]  # fmt: skip
        with open(folder / "log.txt", "ab") as log:
            code = subprocess.call([str(w) for w in words], cwd=ROOT, env=_environment(args), stdout=log, stderr=log)
        if code or not is_finished(folder / "run"):
            raise UserError(f"the run {rung.name} ended with exit code {code}, see {folder / 'log.txt'}; mend its cause and give the same command again")  # fmt: skip
    sources = read_evaluations(folder / "run")[-1]["sources"]
    bits, loss = ({s: v[key] for s, v in sources.items()} for key in ("bits_per_byte", "loss"))
    return Measured(rung.size, bits, loss)


def _launcher(args: argparse.Namespace, slot: int) -> list[object]:
    ranks = ["--num_gpus", args.cpu_ranks]
    if args.gpus:
        ranks = ["--include", "localhost:" + ",".join(str(slot * args.gpus + gpu) for gpu in range(args.gpus))]
    return [deepspeed_launcher(), "--quiet", *ranks, "--master_port", free_port()]


def _environment(args: argparse.Namespace) -> dict[str, str]:
    if args.gpus:
        return dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // (args.cpu_ranks * args.at_once))
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
