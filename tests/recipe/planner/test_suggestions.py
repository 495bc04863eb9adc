"""What to do when memory runs out: each suggestion needs less, the cheapest in time comes first."""

from __future__ import annotations

from recipe.base.ds_config import load_ds_config
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import Plan
from recipe.planner.suggestions import suggestions
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT


def plan_of(**facts) -> Plan:
    ds, _ = load_ds_config(ROOT / "ds_configs/a100_256.json")
    shape = load_model_shape(ROOT / "recipe/configs/models/30b-a3b")
    return Plan(Workload(shape, cluster_of("a100-80gb", 256, "400g"), ds, RunFacts(**facts)))


def test_each_suggestion_needs_less_and_the_cheapest_comes_first():
    plan = plan_of(recompute="none")
    ranked = suggestions(plan)
    assert len(ranked) >= 3
    assert all(suggestion.peak_gib < plan.memory.peak_gib for suggestion in ranked)
    assert [suggestion.slowdown for suggestion in ranked] == sorted(suggestion.slowdown for suggestion in ranked)
    message = " ".join(map(str, ranked))
    assert "train_micro_batch_size_per_gpu 4, gradient_accumulation_steps 2" in message
    assert "compute.recompute non_reentrant" in message
