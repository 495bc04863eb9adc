"""Run under the launcher by test_watching.py: gathers of two groups, started in another order on each rank, then waited for."""

from __future__ import annotations

import time

import deepspeed.comm
import torch
import torch.distributed as dist

from recipe.engine.session import session
from recipe.safety.stragglers import compare, timed_collectives


def main() -> None:
    with session():
        rank = dist.get_rank()
        groups = [dist.new_group([0, 1]) for _ in range(2)]
        mine, whole = torch.full((4,), float(rank)), [torch.empty(8) for _ in groups]
        with timed_collectives() as found:
            if rank == 1:
                time.sleep(0.5)
            handles = {}
            for number in (0, 1) if rank == 0 else (1, 0):
                handles[number] = deepspeed.comm.all_gather_into_tensor(
                    whole[number], mine, group=groups[number], async_op=True
                )
            for number in (0, 1):
                handles[number].wait()
        metrics, message = compare(found, 1.5)
        assert all(gathered.tolist() == [0.0] * 4 + [1.0] * 4 for gathered in whole)
        assert metrics["slowest_rank"] == 1
        assert metrics["waited_least_s"] < 0.2
        if rank == 0:
            print(message)


if __name__ == "__main__":
    main()
