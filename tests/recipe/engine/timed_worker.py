"""One rank of a real launch: training steps whose collectives are counted where they are called and where they arrive."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.engine.build import build_engine, control_routing
from recipe.engine.collective_counts import CollectiveCounter
from recipe.engine.rehearsal import random_batch
from recipe.engine.session import session
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig
from recipe.safety.stragglers import timed_collectives


def group_timeout_s(group: dist.ProcessGroup) -> float:
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def main() -> None:
    ds_path, output = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    shape, compute = load_model_shape("recipe/configs/models/tiny"), Compute()
    with session():
        config = RecipeMoeConfig.from_shape(shape)
        ds_raw = json.loads(Path(ds_path).read_text())
        engine = build_engine(config, ds_raw, seed=0, optimizer=Optimizer(), compute=compute)
        control = control_routing(engine, Routing(), seq_length=32, sources=["a"], seed=0)
        random = np.random.default_rng(dist.get_rank())
        for step in range(1, 4):
            with CollectiveCounter() as arrived, timed_collectives() as timed:
                batches = [random_batch(random, 2, 32, shape.vocab_size)]
                run_step(engine, control, compute, batches, step=step, observing=True, update_bias=True)
        seen: Counter[str] = Counter()
        for kind, count in arrived.bytes.items():
            seen[kind.op] += count
        timeouts = [group_timeout_s(group) for group in dist.distributed_c10d._world.pg_map]
        found = {
            "timeouts_s": timeouts,
            "called": timed.sent_bytes,
            "arrived": seen,
            "waits_s": timed.waits_s,
            "whole_s": timed.whole_s,
        }
        of_ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, found)
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps(of_ranks))


if __name__ == "__main__":
    main()
