"""Run under the launcher by test_recompute.py: steps of the real engine that keep results, against steps that recompute nothing.

Arguments: path of a JSON list of cases, output path. A case has settings of an engine and policies: the layers, counted from
the first, that keep each name. Per policy rank 0 writes which gradients of any rank differ from those of `recompute: none`,
the operators of a step, and the bytes that a micro-batch keeps.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.engine import build
from recipe.engine.build import build_engine, control_routing
from recipe.engine.collectives import gathered
from recipe.engine.moe.experts import RecipeExperts
from recipe.engine.session import session
from recipe.engine.step import model_inputs, run_step, summed_loss_of
from recipe.model import recompute
from recipe.planner.kept import NOTHING, Kept
from tests.conftest import ds_config
from tests.recipe.engine.routing_worker import SEED, SEQ, batch_of, bias_of, sequences_of, tiny

STEPS = 2  # in the first ZeRO-3 records what it gathers, by which it gathers ahead in the second
COUNTED = {"mm": "mm", "_scaled_dot_product_flash_attention_for_cpu": "attention", "_grouped_mm": "grouped_mm",
           "alltoall_base_": "all_to_all"}  # fmt: skip


class Operators(TorchDispatchMode):
    """Counts calls, also beside compiled functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in COUNTED:
            self.calls[COUNTED[name]] += 1
        return func(*args, **(kwargs or {}))


class Stored:
    """Bytes that were stored, by name."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self._add = recompute._Store.add

    def patch(self) -> Any:
        return patch.object(recompute._Store, "add", lambda store, name, result: self.add(store, name, result))

    def add(self, store: Any, name: str, result: Any) -> None:
        self._add(store, name, result)
        tensors = [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]
        # Gate and up may be halves of one result.
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.bytes[name] += sum(sizes.values())


def run(case: dict, mode: str, kept: Kept) -> dict[str, Any]:
    rank, world, sizes = dist.get_rank(), dist.get_world_size(), case["sizes"]
    compute = Compute(recompute=mode, loss_chunk_tokens=5, **case.get("compute", {}))
    with patch.object(build, "kept_of", lambda *_, **__: kept):
        ds_raw = ds_config(world, **sizes, **case.get("ds", {}))
        engine = build_engine(tiny(case), ds_raw, seed=SEED, optimizer=Optimizer(), compute=compute, seq_length=SEQ)
    routing = Routing.model_validate(case.get("routing", {}))
    control = control_routing(engine, routing, seq_length=SEQ, sources=["en", "zh"], seed=SEED)
    for number, bias in enumerate(control.bias_L):
        bias.copy_(bias_of(number))
    tokens, micro = sequences_of(case, world), sizes["micro_batch"]
    starts = [(step * world + rank) * micro for step in range(sizes["accumulation"])]
    batches = [batch_of(case, tokens[s : s + micro], np.arange(micro) % 2) for s in starts]
    gradients: list[torch.Tensor] = []
    step = engine.step

    def step_and_look() -> None:
        if engine.is_gradient_accumulation_boundary():
            gradients.extend(safe_get_full_grad(p).detach().float().clone() for p in engine.module.parameters())
        step()

    engine.step = step_and_look
    rows: list[int] = []
    computed = RecipeExperts.computed

    def computed_and_counted(experts, rows_MD, *more):
        if not recompute.recomputing():
            rows.append(len(rows_MD))
        return computed(experts, rows_MD, *more)

    for number in range(1, STEPS + 1):
        engine.train()
        operators, stored = Operators(), Stored()
        rows.clear()
        with operators, stored.patch(), patch.object(RecipeExperts, "computed", computed_and_counted):
            loss, _ = run_step(engine, control, compute, batches, step=number, observing=False, update_bias=True)
        evaluated = evaluate(engine, compute, batches[0])
    names = [name for name, _ in engine.module.named_parameters()]
    engine.destroy()
    return {"gradients": gradients, "names": names * STEPS, "loss": loss, "operators": dict(operators.calls),
            "bytes": dict(stored.bytes), "rows": list(rows),
            "evaluated": evaluated}  # fmt: skip


@torch.no_grad()
def evaluate(engine: Any, compute: Compute, batch: Any) -> dict[str, int]:
    """What an evaluation between steps stores."""
    engine.eval()
    stored = Stored()
    with stored.patch():
        summed_loss_of(engine, compute, model_inputs(batch), torch.from_numpy(batch.targets))
    return dict(stored.bytes)


def compared(case: dict) -> list[dict]:
    plain = run(case, "none", NOTHING)
    results = []
    for policy in case["policies"]:
        mode = "selective" if policy is not None else "non_reentrant"
        found = run(case, mode, Kept(tuple((policy or {}).items())))
        pairs = zip(found.pop("names"), found.pop("gradients"), plain["gradients"], strict=True)
        differ = sorted({name for name, gradient, expected in pairs if not torch.equal(gradient, expected)})
        assert torch.equal(found.pop("loss"), plain["loss"])
        of_ranks = gathered((differ, found))
        results.append({"differ": sorted({name for names, _ in of_ranks for name in names}), "policy": policy,
                        "plain": plain["operators"], "ranks": [part for _, part in of_ranks]})  # fmt: skip
    return results


def main() -> None:
    cases_path, output = (a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    with open(cases_path) as handle:
        cases = json.load(handle)
    with session():
        results = [compared(case) for case in cases]
        if dist.get_rank() == 0:
            with open(output, "w") as handle:
                json.dump(results, handle)


if __name__ == "__main__":
    main()
