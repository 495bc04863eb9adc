"""How long training waits for a checkpoint: written in the background, at once, and by DeepSpeed alone; and plain dd.

The same engine, model and states; every way saves `--saves` times in turn, between training steps of their own. A save
in the background is waited for before the next one. JSON on standard output; `--table FILE` prints a result as Markdown.

    deepspeed --num_gpus 2 benchmarks/checkpoint.py --folder /tmp/checkpoints > result.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from recipe.base.model_shape import load_model_shape
from recipe.base.ranks import leave
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Checkpoint, Compute, Numerics, Optimizer
from recipe.base.tables import markdown_table
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.engine.build import build_engine, control_routing
from recipe.engine.collectives import any_rank
from recipe.engine.rehearsal import random_batch
from recipe.engine.session import session
from recipe.engine.step import run_step
from recipe.engine.step_guard import StepGuard
from recipe.model import RecipeMoeConfig
from recipe.planner.search.ds_writer import ds_config_for

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 768,
    "n_routed_experts": 16,
    "num_hidden_layers": 9,
}
SEQ = 256


def shape_of_tiny(changes: dict[str, int]):
    tiny = load_model_shape(ROOT / "recipe/configs/models/tiny")
    return tiny.model_copy(update={**changes, "head_dim": 64, "num_attention_heads": 8})


class Bench:
    """An engine that trains, and the ways to save it."""

    def __init__(self, folder: Path):
        self.shape, self.ranks = shape_of_tiny(SHAPE), dist.get_world_size()
        ds = ds_config_for(self.shape, self.ranks, stage=3, ep_size=self.ranks, micro_batch=1, accumulation=1)
        ds.pop("bf16", None)
        ds.pop("data_types", None)
        self.engine = build_engine(
            RecipeMoeConfig.from_shape(self.shape), ds, seed=0, optimizer=Optimizer(), compute=Compute()
        )
        self.control = control_routing(self.engine, Routing(), seq_length=SEQ, sources=["en"], seed=0)
        self.folder, self.step = folder, 0
        self.stores = {
            name: CheckpointStore(
                folder / name, Checkpoint(every_steps=1, keep_last=1, asynchronous=name == "background")
            )
            for name in ("background", "at once")
        }
        self.store = self.stores["at once"]  # that saves just now
        self.guard = StepGuard(
            self.engine,
            Numerics(spikes=None),
            {},
            votes=lambda: self.store.votes(),
            before_update=lambda: self.store.before_update(),
        )
        self.plain = self.engine.checkpoint_engine
        self.random = np.random.default_rng(dist.get_rank())

    def train(self) -> float:
        self.step += 1
        batch, begun = random_batch(self.random, 1, SEQ, self.shape.vocab_size), time.monotonic()
        run_step(
            self.engine,
            self.control,
            Compute(),
            [batch],
            step=self.step,
            observing=False,
            update_bias=True,
            guard=self.guard,
        )
        self.store.commit(self.guard.verdict().totals)
        return time.monotonic() - begun

    def ours(self, name: str) -> dict[str, float]:
        """Save as the training loop does, and train until it is committed."""
        self.store = store = self.stores[name]
        dist.barrier()
        store.save(self.engine, TrainState(step=self.step))
        steps, event = [], next(iter(store.take_events()), None)
        while not any_rank(event is not None):
            steps.append(self.train())
            event = next(iter(store.take_events()), None)
        store.finish()
        sizes = ("stall_s", "took_s", "bytes")
        found = {key: float(event[key]) for key in sizes} if event is not None else dict.fromkeys(sizes, 0.0)
        return {**found, "step_s": statistics.median(steps or [0.0])}

    def deepspeeds(self) -> dict[str, float]:
        mine, self.engine.checkpoint_engine = self.engine.checkpoint_engine, self.plain
        dist.barrier()
        begun = time.monotonic()
        self.engine.save_checkpoint(str(self.folder / "deepspeed"), tag="saved", save_latest=False)
        took = time.monotonic() - begun
        self.engine.checkpoint_engine = mine
        self.train()
        return {"stall_s": took, "took_s": took}


def dd(folder: Path, size: int) -> float:
    """Seconds of a plain, flushed write of so many bytes."""
    begun = time.monotonic()
    words = ["dd", "if=/dev/zero", f"of={folder / 'dd'}", "bs=1M", f"count={size >> 20}", "conv=fsync"]
    subprocess.run(words, check=True, capture_output=True)
    (folder / "dd").unlink()
    return time.monotonic() - begun


def measure(folder: Path, saves: int) -> dict[str, Any] | None:
    """The result, on rank 0."""
    bench = Bench(folder)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "in the background": lambda: bench.ours("background"),
        "at once, verified": lambda: bench.ours("at once"),
        "DeepSpeed's own": bench.deepspeeds,
    }
    quiet = statistics.median(bench.train() for _ in range(4))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    wrote: list[float] = []
    size = 0
    for number in range(saves + 1):  # the first of each warms up and is not counted
        for name, way in ways.items():
            bench.train()
            result = way()
            size = int(result.get("bytes", 0)) or size
            if number:
                found[name].append(result)
        if dist.get_rank() == 0 and number:
            wrote.append(dd(folder, size))
        dist.barrier()
    if dist.get_rank() != 0:
        return None
    rows = {
        name: {key: statistics.median(r[key] for r in results) for key in ("stall_s", "took_s")}
        for name, results in found.items()
    }
    during = statistics.median(r["step_s"] for r in found["in the background"])
    at_once = rows["at once, verified"]["stall_s"]
    return {
        "ranks": bench.ranks, "threads": torch.get_num_threads(), "torch": torch.__version__, "bytes": size, "saves": saves,
        "ways": {n: {**r, "bytes_per_s": size / r["took_s"], "stall_over_at_once": r["stall_s"] / at_once} for n, r in rows.items()},
        "dd": {"took_s": statistics.median(wrote), "bytes_per_s": size / statistics.median(wrote)},
        "step_s": quiet, "step_s_while_writing": during,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    size = found["bytes"] / 2**30
    rows = [
        [
            name,
            f"{way['stall_s']:.3f}",
            f"{way['stall_over_at_once']:.1%}",
            f"{way['took_s']:.2f}",
            f"{way['bytes_per_s'] / 1e9:.2f}",
        ]
        for name, way in found["ways"].items()
    ]
    rows.append(["dd, flushed", "", "", f"{found['dd']['took_s']:.2f}", f"{found['dd']['bytes_per_s'] / 1e9:.2f}"])
    head = [f"{size:.2f} GiB, {found['ranks']} ranks", "training waits, s", "of at once", "until on disk, s", "GB/s"]
    steps = f"A training step takes {found['step_s']:.2f} s, and {found['step_s_while_writing']:.2f} s while a save is written on the same cores."
    return f"{markdown_table(head, rows)}\n\n{steps}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a new folder on the file system to measure; removed at the end")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--table", type=Path, metavar="RESULT")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return 0
    if args.folder is None or args.folder.exists():
        parser.error("--folder must be given and new")
    with session():
        found = measure(args.folder, args.saves)
        if found is not None:
            shutil.rmtree(args.folder)
            json.dump(found, sys.stdout, indent=1)
            print()
    return 0


if __name__ == "__main__":
    leave(main())
