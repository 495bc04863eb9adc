"""Bytes that are held and bytes that travel: the plan's against the real engine's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from recipe.base.ds_config import load_ds_config
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.communication import bytes_by_kind
from recipe.planner.memory import state_bytes
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT, ds_config, launch, run_forked

TINY = ROOT / "recipe/configs/models/tiny"
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
# What a layer of `tiny` has: 60,000 to 120,000 parameters a rank.
TIGHT = {"stage3_prefetch_bucket_size": 100_000, "stage3_max_live_parameters": 300_000}


def write(path: Path, ranks: int, *, zero: dict | None = None, bf16: bool = True, **options) -> Path:
    config = ds_config(ranks, micro_batch=2, **options, **(BF16 if bf16 else {}))
    config["zero_optimization"].update(zero or {})
    if config["zero_optimization"]["stage"] != 3:
        for key in [k for k in config["zero_optimization"] if k.startswith("stage3")]:
            del config["zero_optimization"][key]
    path.write_text(json.dumps(config))
    return path


def shallow_model(folder: Path) -> Path:
    """`tiny` with one dense layer, two MoE layers and a small vocabulary: every kind of neighbours, less to send."""
    config = json.loads((TINY / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "vocab_size": 512}))
    return folder


# ranks, expert-parallel size, stage, accumulation, recompute, changes of the ZeRO section
CASES = [
    (8, 4, 3, 1, "non_reentrant", {}),
    (256, 2, 3, 2, "non_reentrant", TIGHT | {"stage3_max_reuse_distance": 50_000, "stage3_param_persistence_threshold": 20_000}),
    (1024, 4, 2, 2, "none", {"overlap_comm": True, "reduce_bucket_size": 500_000}),
]  # fmt: skip
MORE_CASES = [
    (8, 8, 3, 3, "none", TIGHT | {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 200}),
    (256, 8, 3, 1, "reentrant", TIGHT | {"stage3_max_reuse_distance": 150_000}),
    (1024, 8, 3, 2, "non_reentrant", {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 250_000}),
    (8, 4, 1, 2, "non_reentrant", {}),
]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "ep", "stage", "accumulation", "recompute", "zero"), CASES)
def test_a_rehearsal_does_what_is_planned(tmp_path, ranks, ep, stage, accumulation, recompute, zero):
    path = write(tmp_path / "ds.json", ranks, zero=zero, autoep_size=ep, stage=stage, accumulation=accumulation)
    done = run_forked(
        "launch/rehearse.py", "--ds-config", path, "--model", TINY, "--layers", 4, "--recompute", recompute, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["agrees"] is True
    assert report["groups"] == {"world": ranks, "expert_parallel": ep, "expert_data_parallel": ranks // ep}
    held = {"parameters", "master_weights", "moments"} | ({"gradients"} if stage != 2 else set())
    assert held <= report["held"].keys()
    kinds = {(c["op"], c["ranks"]) for c in report["collectives"]}
    assert ("all_to_all", ep) in kinds
    assert ("reduce_scatter" if stage == 3 else "all_reduce", ranks) in kinds


REAL = [(2, 2, 3, False), (4, 2, 3, True), pytest.param(4, 4, 2, True, marks=pytest.mark.slow)]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "ep", "stage", "bf16"), REAL)
def test_real_processes_send_what_is_planned(tmp_path, ranks, ep, stage, bf16):
    path = write(tmp_path / "ds.json", ranks, bf16=bf16, zero=TIGHT, autoep_size=ep, stage=stage, accumulation=2)
    output = tmp_path / "counted.json"
    worker = ROOT / "tests/recipe/engine/collectives_worker.py"
    model = shallow_model(tmp_path / "model")
    done = launch(ranks, worker, path, model, 16, "non_reentrant", output, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    rehearsed = json.loads(output.read_text())
    ds, _ = load_ds_config(path)
    planned = Workload(load_model_shape(model), cluster_of("a100-80gb", ranks, None), ds, RunFacts(16))
    expected = {" ".join(map(str, kind)): size for kind, size in bytes_by_kind(planned).items()}
    for counted in rehearsed["bytes"]:
        routed = {k for k in expected if k.startswith("all_to_all") and "int32" not in k}
        others = {k: n for k, n in counted.items() if k.split()[1] != "1" and k not in routed}
        assert others == {k: n for k, n in expected.items() if k not in routed}
    for kind in routed:  # a rank returns as many rows as it was sent, which differs; all ranks together send T * K each
        assert sum(counted[kind] for counted in rehearsed["bytes"]) == ranks * expected[kind]
    held = asdict(state_bytes(planned))
    assert rehearsed["held"] == {name: held[name] for name in rehearsed["held"]}
