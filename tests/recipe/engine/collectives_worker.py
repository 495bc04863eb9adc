"""One rank of a real launch: a rehearsal's step over gloo, every rank's collectives, and rank 0's tensors, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from recipe.base.model_shape import load_model_shape
from recipe.engine.rehearsal import rehearse
from recipe.engine.session import session


def main() -> None:
    ds_path, model, seq_length, recompute, output = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
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
        dist.all_gather_object(of_ranks, counted)
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps({"bytes": of_ranks, "held": done.state_bytes}))


if __name__ == "__main__":
    main()
