"""Two ranks on one GPU, with the experts spread over both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cluster.hosts import free_port
from tests.conftest import ROOT
from tests.gpu.engines import plain
from tests.gpu.test_engine import FIRST_LOSS, LATER_LOSSES, NORM

IN_PARTS = 1e-5  # fp32 sums of gradients in another order
LIMIT_S = 100.0  # two starts side by side, each with its imports


def two_ranks(folder: Path, *, on_gpu: bool) -> dict[str, Any]:
    """What the worker says that is started twice; an end of one ends the other, which would wait for it."""
    port, *others = (free_port() for _ in range(3))
    common = {
        "WORLD_SIZE": 2, "LOCAL_SIZE": 2, "CROSS_RANK": 0, "CROSS_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "NCCL_MULTI_RANK_GPU_ENABLE": 1,  # without it NCCL refuses; before 2.30 it does so with it (src/init.cc)
        "NCCL_NVLS_ENABLE": 0,  # which a GPU shared by two ranks cannot have
        "TORCH_NCCL_BLOCKING_WAIT": 1,  # a collective that hangs is an error of it, and not the end of the process
    }  # fmt: skip
    output, logs = folder / "result.json", [folder / f"rank{rank}.log" for rank in range(2)]
    ranks = []
    for rank, log in enumerate(logs):
        place = {"RANK": rank, "LOCAL_RANK": 0 if on_gpu else rank}
        environment = {**os.environ, **{name: str(value) for name, value in {**common, **place}.items()}}
        words = [sys.executable, "-m", "tests.gpu.two_ranks_worker", output, *others]
        with log.open("w") as handle:
            ranks.append(
                subprocess.Popen(
                    [str(word) for word in words], cwd=ROOT, env=environment, stdout=handle, stderr=subprocess.STDOUT
                )
            )
    ends = time.monotonic() + LIMIT_S
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            if time.monotonic() > ends:
                break
            time.sleep(0.1)
        codes = [rank.poll() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    printed = "\n".join(log.read_text(errors="replace")[-1500:] for log in logs)
    assert None not in codes or any(codes), f"two ranks have not ended within {LIMIT_S:.0f} s; they printed: {printed}"
    assert codes == [0, 0], f"two ranks ended with {codes} (None: still ran); they printed: {printed}"
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def test_experts_over_two_ranks(device, measured, tmp_path):
    """Two ranks on one device, at ZeRO-3 with the experts spread over both, have the losses of the plain model.

    With rows exchanged in two parts they have those of one, and its gradient norms.
    """
    found = two_ranks(tmp_path, on_gpu=device.type == "cuda")
    measured.update(found)
    if "backend" not in found:
        answers = "; ".join(f"{of} in {op}: {text}" for of, ops in found["refused"].items() for op, text in ops.items())
        pytest.skip(f"not possible here: {answers}")
    losses, norms = plain("dropless", documents=False, bf16_weights=False, steps=len(found["losses"]), ranks=2)
    loss_errors = [abs(a / b - 1) for a, b in zip(found["losses"], losses, strict=True)]
    norm_errors = [abs(a / b - 1) for a, b in zip(found["norms"], norms, strict=True)]
    measured.update(loss_error=max(loss_errors), grad_norm_error=max(norm_errors))
    # Of two parts the second step has the gradients of the first in its weights.
    in_parts = [
        abs(a / b - 1)
        for name in ("losses", "norms") for a, b in zip(found[f"{name}_in_parts"], found[name], strict=True)
    ]  # fmt: skip
    measured.update(error_of_two_parts=max(in_parts))
    assert max(in_parts) < IN_PARTS
    assert found["device"].startswith(device.type)
    assert loss_errors[0] < FIRST_LOSS
    assert max(loss_errors) < LATER_LOSSES
    assert max(norm_errors) < NORM
