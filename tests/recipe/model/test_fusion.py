"""What inductor makes of each fusible function for GPUs, without one: in how many passes over memory, and that it compiles."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.conftest import ROOT, run_forked

# Kernels and calls of torch in each function's forward and backward pass, None where it has no backward pass. More mean that
# a fusion broke, fewer that this table may be tightened.
LAUNCHES = {
    # the backward pass also adds up the weight's gradient over blocks of rows
    "rms_norm": (1, 2),
    "rotate": (1, 1),
    "swiglu": (1, 1),
    # the logits' reduction, with their gradient; then the targets' elements of it
    "loss_and_gradient": (2, None),
    # torch's topk has its own kernels
    "scores_and_choice": (2, 1),
    "score_shares": (1, 1),
    # [T, K] numbers alone
    "weights_of": (2, 3),
    "load_balancing_loss": (7, 1),
    # who is chosen is written before it is read
    "margin_places": (3, None),
    "router_z_terms": (1, 1),
    "_spread": (1, None),
    "_summed": (1, None),
    "_weighted_swiglu": (1, None),
    "_weighted_swiglu_gradients": (1, None),
}
CAPABILITIES = (80, 90)  # A100; H100 and H200


def fusible_functions() -> set[str]:
    """Those marked in the source."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "recipe").rglob("*.py")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        node.name
        for node in functions
        if any(isinstance(mark, ast.Call) and ast.unparse(mark.func) == "fusible" for mark in node.decorator_list)
    }


def test_each_fusible_function_has_its_passes():
    assert set(LAUNCHES) == fusible_functions()


def test_inductor_fuses_for_a_gpu_what_is_to_be_fused(tmp_path: Path):
    done = run_forked(
        "tests/recipe/model/fusion_worker.py", tmp_path, *CAPABILITIES,
        env={"TRITON_CACHE_DIR": str(tmp_path / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    passes = json.loads(done.stdout)
    launches = {name: passes[name]["launches"] for name in passes}
    assert {name: (launches[name], launches.get(f"{name} backward")) for name in LAUNCHES} == LAUNCHES
    assert all(all(sizes) for one in passes.values() for sizes in one["machine_code_bytes"].values())
