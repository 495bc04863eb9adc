"""DeepSpeed's Triton kernels that our experts launch on GPUs: they compile, and compute what torch does.

No GPU is needed: Triton's package has NVIDIA's assembler, and an interpreter.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, run_forked, run_python

WORKER = "tests/recipe/engine/triton_worker.py"
# Shared memory of a block in KiB, by compute capability: CUDA C++ Programming Guide, table "Technical Specifications".
SHARED_KIB = {80: 163, 90: 227}
KERNELS = {"_group_meta_kernel", "_group_gemm_kernel", "_group_gemm_dw_kernel"}


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_kernels_of_a_layer_compile_for_a100_and_h100_and_fit(tmp_path: Path):
    """As the flagship launches them, one rank of EP 8, forward and backward."""
    compiled = answer(run_forked(WORKER, *SHARED_KIB, env={"TRITON_CACHE_DIR": str(tmp_path)}))
    for capability, shared_kib in SHARED_KIB.items():
        kernels = [kernel for kernel in compiled if kernel["capability"] == capability]
        assert {kernel["kernel"] for kernel in kernels} == KERNELS
        assert all(kernel["shared_bytes"] <= shared_kib * 1024 for kernel in kernels)
        assert all(kernel["machine_code_bytes"] > 0 for kernel in kernels)


def test_the_kernels_compute_what_torch_does_for_awkward_numbers_of_rows():
    """By Triton's interpreter: rows of several ranks, experts without rows, one row, more than a block and not whole ones."""
    cases = [
        {"counts": [[0, 1, 17, 0], [3, 0, 40, 0]], "hidden": 40, "width": 24},
        {"counts": [[1]], "hidden": 64, "width": 32},
        {"counts": [[0, 0, 33, 1, 0]], "hidden": 136, "width": 72},
    ]
    # a process of its own: Triton reads the variable when it is imported
    env = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    differences = answer(run_python(WORKER, "run", json.dumps(cases), env=env))
    assert len(differences) == len(cases)
    assert max(differences) < 1e-5, differences
