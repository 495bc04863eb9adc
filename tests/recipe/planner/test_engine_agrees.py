"""Bytes that are held and bytes that travel: the plan's against the real engine's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from recipe.base.ds_config import load_ds_config
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.communication import bytes_by_kind
from recipe.planner.kept import Rows, kept_bytes, routing_plan_bytes
from recipe.planner.memory import state_bytes
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT, ds_config, launch, run_forked

TINY = ROOT / "recipe/configs/models/tiny"
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
# What a layer of `tiny` has: 60,000 to 120,000 parameters a rank.
TIGHT = {"stage3_prefetch_bucket_size": 100_000, "stage3_max_live_parameters": 300_000}
# Weights stay from the forward to the backward pass.
HELD = {"stage3_max_live_parameters": 10**12, "stage3_max_reuse_distance": 10**12}
# Of four layers of `tiny` and 32 tokens all results, and the first two layers whole.
WHOLE = {"kept_gib": 7e-4}
# Of 32 tokens and four layers all that can be kept but the rows of a layer or two.
KEPT = {"kept_gib": 3.5e-4}


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


# ranks, expert-parallel size, stage, accumulation, recompute, changes of the ZeRO section, the recipe's section
CASES = [
    (8, 8, 3, 1, "selective", HELD, KEPT | {"exchange_parts": 2}),
    (256, 2, 3, 2, "selective", TIGHT | {"stage3_max_reuse_distance": 50_000, "stage3_param_persistence_threshold": 20_000}, WHOLE | {"exchange_parts": 3}),
    (1024, 4, 2, 2, "none", {"overlap_comm": True, "reduce_bucket_size": 500_000}, {}),
]  # fmt: skip
MORE_CASES = [
    (8, 1, 3, 3, "selective", TIGHT | {"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 200}, WHOLE),
    (256, 2, 3, 2, "non_reentrant", TIGHT | {"stage3_max_reuse_distance": 50_000, "stage3_param_persistence_threshold": 20_000}, {"exchange_parts": 3}),
    (256, 8, 3, 1, "reentrant", TIGHT | {"stage3_max_reuse_distance": 150_000}, {"exchange_parts": 2}),
    (1024, 4, 3, 2, "selective", {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 250_000}, KEPT | {"exchange_parts": 2}),
    (8, 4, 3, 2, "none", TIGHT | {"stage3_max_reuse_distance": 0}, {"exchange_parts": 2}),
    (8, 4, 1, 2, "non_reentrant", {}, {}),
]  # fmt: skip
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "ep", "stage", "accumulation", "recompute", "zero", "recipe"), CASES)
def test_a_rehearsal_does_what_is_planned(tmp_path, ranks, ep, stage, accumulation, recompute, zero, recipe):
    path = tmp_path / "ds.json"
    write(path, ranks, zero=zero, autoep_size=ep, stage=stage, accumulation=accumulation, recipe=recipe)
    done = run_forked(
        "launch/rehearse.py", "--ds-config", path, "--model", TINY, "--layers", 4, "--recompute", recompute, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["agrees"] is True
    assert report["kept"].get("everything", 0) == 2 * (recipe.items() >= WHOLE.items())
    assert report["groups"] == {"world": ranks, "expert_parallel": ep, "expert_data_parallel": ranks // ep}
    held = {"parameters", "master_weights", "moments"} | ({"gradients"} if stage != 2 else set())
    assert held <= report["held"].keys()
    kinds = {(c["op"], c["ranks"]) for c in report["collectives"]}
    assert (("all_to_all", ep) in kinds) == (ep > 1)
    assert ("reduce_scatter" if stage == 3 else "all_reduce", ranks) in kinds


REAL = [
    (4, 2, True, "selective", {"kept_gib": 2.7e-4, "exchange_parts": 2}),
    pytest.param(2, 2, False, "non_reentrant", {}, marks=pytest.mark.slow),
    pytest.param(4, 4, True, "none", {"exchange_parts": 3}, marks=pytest.mark.slow),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "ep", "bf16", "recompute", "recipe"), REAL)
def test_real_processes_send_and_keep_what_is_planned(tmp_path, ranks, ep, bf16, recompute, recipe):
    path = tmp_path / "ds.json"
    write(path, ranks, bf16=bf16, zero=TIGHT, autoep_size=ep, stage=3, accumulation=2, recipe=recipe)
    output = tmp_path / "counted.json"
    worker = ROOT / "tests/recipe/engine/collectives_worker.py"
    model = shallow_model(tmp_path / "model")
    done = launch(ranks, worker, path, model, 16, recompute, output, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    rehearsed = json.loads(output.read_text())
    ds, _ = load_ds_config(path)
    planned = Workload(
        load_model_shape(model), cluster_of("a100-80gb", ranks, None), ds, RunFacts(16, recompute, compile=False)
    )
    expected = {" ".join(map(str, kind)): size for kind, size in bytes_by_kind(planned).items()}
    for counted in rehearsed["bytes"]:
        routed = {k for k in expected if k.startswith("all_to_all") and "int32" not in k}
        others = {k: n for k, n in counted.items() if k.split()[1] != "1" and k not in routed}
        assert others == {k: n for k, n in expected.items() if k not in routed}
    for kind in routed:  # a rank returns as many rows as it was sent, which differs; all ranks together send T * K each
        assert sum(counted[kind] for counted in rehearsed["bytes"]) == ranks * expected[kind]
    held = asdict(state_bytes(planned))
    assert rehearsed["held"] == {name: held[name] for name in rehearsed["held"]}
    for kept in rehearsed["kept"]:
        stored = {name: size for name, size in kept["bytes"].items() if size}
        assert stored == planned_kept_bytes(planned, kept["arrived"])
    if recompute == "selective":
        assert planned.kept.moe_layers("rows", planned.shape) == 1  # of two


def planned_kept_bytes(work: Workload, arrived: list[int]) -> dict[str, float]:
    """Of all micro-batches of a rank, in each of whose MoE layers so many rows arrived."""
    shape, totals = work.shape, Counter()
    padding = work.exchange_parts * shape.n_routed_experts // work.ep * 8
    layers = range(shape.num_hidden_layers)
    moe_layers = layers[shape.first_k_dense_replace :]
    for at, rows in enumerate(arrived):
        number = moe_layers[at % len(moe_layers)]
        of_layer = Rows(work.tokens, rows, rows + padding)
        totals["routing plan"] += routing_plan_bytes(shape, of_layer, ep_size=work.ep)
        for name in work.kept.of_layer(number):
            totals[name] += kept_bytes(shape, name, of_layer, moe=True, element=work.element)
    for number in layers[: shape.first_k_dense_replace]:
        for name in work.kept.of_layer(number):
            size = kept_bytes(shape, name, Rows(work.tokens, 0, 0), moe=False, element=work.element)
            totals[name] += size * len(arrived) // len(moe_layers)
    return {name: size for name, size in totals.items() if size}
