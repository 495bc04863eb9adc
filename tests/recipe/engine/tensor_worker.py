"""One rank: three steps of the engine with tensor parallelism folded into expert parallelism; losses as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Compute, Optimizer
from recipe.engine.build import build_engine
from recipe.engine.session import session
from recipe.model import RecipeMoeConfig
from tests.conftest import ROOT, ds_config

SEQUENCES, SEQ = 4, 32


def main() -> None:
    tp, ep, stage, output = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    with session():
        ranks, shape = dist.get_world_size(), load_model_shape(ROOT / "recipe/configs/models/tiny")
        rows = SEQUENCES * int(tp) // ranks  # of a data-parallel rank
        ds = ds_config(ranks, micro_batch=rows, accumulation=1, autoep_size=int(ep), stage=int(stage))
        if int(tp) > 1:
            ds["tensor_parallel"] = {"autotp_size": int(tp)}
        config = RecipeMoeConfig.from_shape(shape)
        engine = build_engine(config, ds, seed=0, optimizer=Optimizer(), compute=Compute())
        for group in engine.optimizer.param_groups:
            group["lr"] = 1e-3
        tokens = torch.randint(0, shape.vocab_size, (SEQUENCES, SEQ + 1), generator=torch.Generator().manual_seed(0))
        mine = tokens[dist.get_rank() // int(tp) * rows :][:rows]
        losses = []
        for _ in range(3):
            loss = engine(mine[:, :-1], targets=mine[:, 1:].contiguous()).loss / (rows * SEQ)
            engine.backward(loss)
            engine.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(mean.item() / ranks)
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
