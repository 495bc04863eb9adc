"""Operations of a training step for which a GPU's host would wait, by whose line asked for them. Prints JSON.

Arguments: the ranks, and a JSON list of cases, which are taken one after another.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.base.model_shape import load_model_shape
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.engine.build import build_engine, control_routing
from recipe.engine.rehearsal import fake_ranks, random_batch
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig
from tests.conftest import ROOT, ds_config

# Those whose result, or its size, the host must see.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "repeat_interleave",
           "equal"}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts the waiting operations by the file and line, of this project or of DeepSpeed, that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_", "index_put") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
        )
        # `repeat_interleave` with numbers has no tensor of repeats and does not come here.
        if name in WAITING or by_mask:
            self.found[asker()] += 1
        return function(*args, **(kwargs or {}))


def asker() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        for owner in ("/recipe/", "/deepspeed/"):
            if owner in path:
                return f"{owner.strip('/')}/{path.split(owner)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


def waits_of(ranks: int, ep: int, stage: int, routing: dict[str, Any], recompute: str = "none") -> Counter[str]:
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny")
    compute = Compute(recompute=recompute)
    ds = ds_config(ranks, micro_batch=2, accumulation=1, autoep_size=ep, stage=stage)
    engine = build_engine(RecipeMoeConfig.from_shape(shape), ds, seed=0, optimizer=Optimizer(), compute=compute)
    settings = Routing.model_validate(routing)
    control = control_routing(engine, settings, seq_length=64, sources=["en", "zh"], seed=0)
    random = np.random.default_rng(0)
    waits = Waits()
    for step in range(1, 4):
        batch = random_batch(random, 2, 64, shape.vocab_size)
        with waits if step == 3 else torch.enable_grad():  # steady by then
            run_step(engine, control, compute, [batch], step=step, observing=True, update_bias=True)
    engine.destroy()
    return waits.found


def main(ranks: int, cases: list[dict[str, Any]]) -> None:
    del os.environ["LOCAL_SIZE"]  # as in a process that no launcher started
    with fake_ranks(ranks):
        found = [waits_of(ranks, **case) for case in cases]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[-2]), json.loads(sys.argv[-1]))
