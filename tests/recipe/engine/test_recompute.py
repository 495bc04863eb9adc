"""Engines that keep results of recomputed layers: bitwise the gradients of `recompute: none`, and no more computed than that."""

from __future__ import annotations

import json

import pytest

from recipe.base.model_shape import load_model_shape
from recipe.planner.kept import EVERYTHING, KEEPABLE, Rows, kept_bytes
from tests.conftest import ROOT, ds_config, launch

LAYERS, MOE_LAYERS = 4, 3  # of the tiny model: a dense one, then MoE layers
EACH = [{name: LAYERS} for name in KEEPABLE]
ALL = dict.fromkeys(KEEPABLE, LAYERS)
PARTIAL = {"attention": 4, "attention_projection": 3, "gate_up": 2, "query_key_value": 1, "rows": 2}
WHOLE = {**ALL, EVERYTHING: LAYERS}
# Two layers are whole; of the others each keeps something else.
SOME_WHOLE = {
    "attention": 4,
    "attention_projection": 3,
    "gate_up": 3,
    "query_key_value": 2,
    "shared_gate_up": 2,
    "rows": 3,
    EVERYTHING: 2,
}
DROP = {"capacity": {"mode": "drop", "factor": 1.0}}
REROUTE = {"capacity": {"mode": "reroute", "factor": 1.0}, "jitter": 0.1}
GLOBAL = {**REROUTE, "aux_loss_scope": "global_batch"}
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
EXPERTS = ds_config(2, micro_batch=1, accumulation=1, autoep_size=2)["expert_parallel"]
SHAPE = load_model_shape(ROOT / "recipe/configs/models/tiny")
WIDTH, TOP_K, ELEMENT = SHAPE.hidden_size, SHAPE.num_experts_per_tok, 4
MICRO_BATCH = 2
TOKENS = MICRO_BATCH * 16


def case(stage: int, autoep_size: int, policies: list, *, accumulation: int = 1, **settings) -> dict:
    sizes = {"micro_batch": MICRO_BATCH, "accumulation": accumulation, "autoep_size": autoep_size, "stage": stage}
    return {"sizes": sizes, "policies": policies, **settings}


def results_of(cases: list[dict], tmp_path) -> list[list[dict]]:
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = launch(2, "tests/recipe/engine/recompute_worker.py", tmp_path / "cases.json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "out.json").read_text())


def check(asked: dict, found: dict) -> None:
    policy, sizes = found["policy"] or {}, asked["sizes"]
    assert found["differ"] == [], (asked, policy)
    for rank in found["ranks"]:
        check_calls(asked, policy, found["plain"], rank["operators"])
        check_bytes(sizes, policy, rank)
        assert rank["evaluated"] == {}, "an evaluation stores nothing"
    if "rows" in policy and sizes["autoep_size"] == 2 and not asked.get("routing"):
        # No more than arrived: all ranks' tokens, each at its experts.
        arrived = sum(rank["bytes"].get("rows", 0) for rank in found["ranks"]) / (WIDTH * ELEMENT + 4)
        layers = moe_layers(policy, "rows") - moe_layers(policy, EVERYTHING)
        assert arrived == 2 * TOKENS * TOP_K * sizes["accumulation"] * layers


def moe_layers(policy: dict, name: str) -> int:
    return max(0, policy.get(name, 0) - 1)


def check_calls(asked: dict, policy: dict, plain: dict, calls: dict) -> None:
    """What the second pass runs is what is not kept; neither down projections nor the way home of rows are run again."""
    kept, kept_moe = (lambda name: policy.get(name, 0)), (lambda name: moe_layers(policy, name))
    parts = asked.get("ds", {}).get("recipe", {}).get("exchange_parts", 1)
    matmuls = {
        "routers": MOE_LAYERS - kept_moe(EVERYTHING),
        "projections": LAYERS - kept("attention_projection") + 3 * (LAYERS - kept("query_key_value")),
        "dense": 2 * (kept("gate_up") == 0),
        "shared": 2 * (MOE_LAYERS - kept_moe("shared_gate_up")),
    }
    expected = {"mm": sum(matmuls.values()), "attention": LAYERS - kept("attention"),
                "grouped_mm": 2 * parts * (MOE_LAYERS - kept_moe("gate_up"))}  # fmt: skip
    if asked["sizes"]["autoep_size"] > 1:  # rows and their routing weights
        expected["all_to_all"] = 2 * parts * (MOE_LAYERS - kept_moe("rows"))
    again = {name: calls.get(name, 0) - plain.get(name, 0) for name in expected}
    assert again == {name: asked["sizes"]["accumulation"] * number for name, number in expected.items()}, policy


def check_bytes(sizes: dict, policy: dict, rank: dict) -> None:
    """As many as the planner counts for the rows that there were."""
    micro_batches, per_layer = sizes["accumulation"], len(rank["rows"]) // sizes["accumulation"] // MOE_LAYERS
    assert len(rank["rows"]) == micro_batches * MOE_LAYERS * per_layer
    planned: dict[str, float] = {}
    whole = policy.get(EVERYTHING, 0)  # of which nothing is stored but what autograd saves
    for name, layers in policy.items():
        for layer in range(whole, layers):
            computed = [n for i, n in enumerate(rank["rows"]) if i // per_layer % MOE_LAYERS == layer - 1]
            of_step = Rows(TOKENS * micro_batches, sum(computed), sum(computed))
            planned[name] = planned.get(name, 0) + kept_bytes(SHAPE, name, of_step, moe=layer > 0, element=ELEMENT)
    if sizes["autoep_size"] > 1:  # where rows are padded after they are kept
        assert rank["bytes"].get("rows", 0) <= planned.pop("rows", 0)
    assert {name: rank["bytes"].get(name, 0) for name in planned} == planned, policy
    assert ("routing plan" in rank["bytes"]) == (whole < LAYERS)


@pytest.mark.distributed
def test_what_is_kept_changes_no_bit_and_is_not_computed_again(tmp_path):
    cases = [case(3, 2, [SOME_WHOLE], accumulation=3, document_attention=True)]
    for asked, of_policies in zip(cases, results_of(cases, tmp_path), strict=True):
        for found in of_policies:
            check(asked, found)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_policy_under_every_division(tmp_path):
    cases = [
        case(3, 2, [None, *EACH, ALL, WHOLE]),
        case(1, 1, [None, *EACH, PARTIAL], document_attention=True),
        case(1, 2, [ALL, PARTIAL], accumulation=3, routing=DROP),
        case(3, 1, [ALL, PARTIAL, SOME_WHOLE], accumulation=3, routing=REROUTE),
        case(3, 2, [PARTIAL], accumulation=3, routing=GLOBAL),
        case(3, 2, [ALL], ds=BF16),
        case(3, 2, [ALL], routing=DROP, compute={"deterministic": True}),
        case(3, 2, [ALL, PARTIAL], ds={"recipe": {"exchange_parts": 2}}, accumulation=2),
        case(3, 2, [ALL], ds={"expert_parallel": EXPERTS | {"gate_up_impl": "fused"}}),
    ]
    for asked, of_policies in zip(cases, results_of(cases, tmp_path), strict=True):
        for found in of_policies:
            assert found["differ"] == [], (asked, found["policy"])
            # bf16 halves the bytes, and a pass that counts tokens first computes rows besides.
            if asked.get("ds") is not BF16 and asked.get("routing") is not GLOBAL:
                check(asked, found)
