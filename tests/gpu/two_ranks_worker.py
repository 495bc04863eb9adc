"""One of two ranks that share a GPU (or are two CPU ranks): steps of ZeRO-3 with the experts spread over both, and the same with
rows exchanged in two parts.

Argument: the output path, where rank 0 writes JSON: `refused` is what each backend answered that does not do it, `backend`
and the rest are there where one does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.engine.session import session
from tests.gpu.engines import Case, trained

STEPS = 2
BACKENDS = ("nccl", "gloo") if torch.cuda.is_available() else ("gloo",)


def answer_of(call: Callable[[], Any]) -> str | None:
    """What an error of a call says, in a line; None if there is none."""
    try:
        call()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {'; '.join(lines[:1] + lines[-1:])}"[:300]
    return None


def refusals(backend: str, port: int) -> dict[str, str]:
    """What a group of a backend does not do with tensors of this device, of what ZeRO-3 and AutoEP ask for."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    one, two = torch.ones(4, device=device), torch.ones(8, device=device)

    def all_reduce() -> None:
        dist.all_reduce(one)
        assert one.tolist() == [2.0] * 4

    def all_gather() -> None:
        dist.all_gather_into_tensor(two, torch.full((4,), float(dist.get_rank()), device=device))
        assert two.tolist() == [0.0] * 4 + [1.0] * 4

    def reduce_scatter() -> None:
        dist.reduce_scatter_tensor(one, torch.arange(8.0, device=device))
        assert one.tolist() == [2.0 * (4 * dist.get_rank() + place) for place in range(4)]

    def all_to_all() -> None:
        sent = torch.full((4,), float(dist.get_rank()), device=device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        assert received.tolist() == [0.0, 0.0, 1.0, 1.0]

    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=int(os.environ["RANK"]), world_size=2,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    found: dict[str, str] = {}
    for call in (all_reduce, all_gather, reduce_scatter, all_to_all):
        if (answer := answer_of(call)) is not None:
            found[call.__name__] = answer
            if call is all_reduce:  # no communicator: the others would say the same
                break
    dist.destroy_process_group()
    return found


def losses_and_norms(case: Case) -> tuple[torch.Tensor, list[float], str]:
    """The sums of the ranks' losses, the gradient norms, and the device."""
    with trained(case) as training:
        training.steps(1, STEPS)
        losses = torch.tensor(training.losses, dtype=torch.float64, device=training.engine.device)
        norms = training.norms
    dist.all_reduce(losses)
    return losses / 2, norms, str(losses.device)


def steps_by(backend: str) -> dict[str, Any]:
    initialize = deepspeed.init_distributed
    deepspeed.init_distributed = lambda dist_backend, timeout: initialize(dist_backend=backend, timeout=timeout)
    with session():
        losses, norms, device = losses_and_norms(Case(3, autoep_size=2, ranks=2))
        in_parts, norms_in_parts, _ = losses_and_norms(Case(3, autoep_size=2, ranks=2, parts=2))
    return {"backend": backend, "device": device, "losses": losses.tolist(), "norms": norms,
            "losses_in_parts": in_parts.tolist(), "norms_in_parts": norms_in_parts}  # fmt: skip


def main(output: str, ports: list[int]) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(0)
    result: dict[str, Any] = {"refused": {}}
    for backend, port in zip(BACKENDS, ports, strict=False):
        if found := refusals(backend, port):
            result["refused"][backend] = found
            continue
        result |= steps_by(backend)
        break
    if os.environ["RANK"] == "0":
        with open(output, "w", encoding="utf-8") as handle:
            json.dump(result, handle)


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
