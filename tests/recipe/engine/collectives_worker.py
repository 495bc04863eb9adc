"""One rank of a real launch: a rehearsal over gloo, every rank's collectives and kept results, rank 0's tensors, as JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipe.base.model_shape import load_model_shape
from recipe.engine.rehearsal import rehearse
from recipe.engine.session import session
from recipe.model import recompute as recompute_module


class KeptBytes:
    """Bytes of all results that recomputed layers keep, by name, and the routing plans among them."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self._plans: list[Any] = []
        add = recompute_module._Store.add

        def counted(store: Any, name: str, result: Any) -> None:
            if hasattr(result, "journeys"):
                self._plans.append(result)
            else:
                self.bytes[name] += _held(result)
            add(store, name, result)

        recompute_module._Store.add = counted

    def report(self) -> dict[str, Any]:
        plans = sum(
            _held([plan.departures, [(a.position_N, a.received_M) for a in plan.arrivals]]) for plan in self._plans
        )
        self.bytes["routing plan"] += plans
        arrived = [sum(sum(arrivals.received) for arrivals in plan.arrivals) for plan in self._plans]
        return {"bytes": self.bytes, "arrived": arrived}


def _held(value: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(value)}
    return sum(storages.values())


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def main() -> None:
    ds_path, model, seq_length, recompute, output = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    kept = KeptBytes()
    with session():
        done = rehearse(
            load_model_shape(model),
            json.loads(Path(ds_path).read_text()),
            seq_length=int(seq_length),
            recompute=recompute,
            sources=2,
        )
        counted = {f"{k.op} {k.ranks} {k.dtype}": n for k, n in done.counted.bytes.items()}
        of_ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, (counted, kept.report()))
        if dist.get_rank() == 0:
            counts, keeps = zip(*of_ranks, strict=True)
            Path(output).write_text(json.dumps({"bytes": counts, "kept": keeps, "held": done.state_bytes}))


if __name__ == "__main__":
    main()
