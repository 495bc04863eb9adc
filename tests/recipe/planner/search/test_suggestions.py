"""What to do when memory runs out: each suggestion needs less, the cheapest in time comes first."""

from __future__ import annotations

import pytest

from recipe.base.ds_config import RecipeSection, load_ds_config
from recipe.base.hardware import cluster_of
from recipe.base.model_shape import load_model_shape
from recipe.planner.plan import Plan
from recipe.planner.search.suggestions import Suggestion, suggestions
from recipe.planner.workload import RunFacts, Workload
from tests.conftest import ROOT


def plan_of(kept_gib: float = 0.0, **facts) -> Plan:
    ds, _ = load_ds_config(ROOT / "ds_configs/a100_256.json")
    ds = ds.model_copy(update={"recipe": RecipeSection(kept_gib=kept_gib)})
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


def kept_in(suggestion: Suggestion) -> float:
    return float(suggestion.change.rpartition("recipe.kept_gib ")[2])


def test_where_nothing_is_recomputed_layers_that_keep_what_fits_are_cheaper_than_those_that_keep_nothing():
    plan = plan_of(recompute="none")
    (selective,) = (s for s in suggestions(plan) if "compute.recompute selective" in s.change)
    (whole,) = (s for s in suggestions(plan) if s.change.endswith("compute.recompute non_reentrant"))
    assert whole.peak_gib < selective.peak_gib <= plan.usable_gib
    assert 0 <= selective.slowdown < whole.slowdown
    assert kept_in(selective) > 0
    assert not any("selective" in s.change for s in suggestions(plan, selective=False))


def test_where_nothing_is_recomputed_and_all_seemed_to_fit_less_than_all_is_kept():
    plan = plan_of(recompute="none", seq_length=1024)
    assert plan.fits
    (selective,) = (s for s in suggestions(plan) if "compute.recompute selective" in s.change)
    (whole,) = (s for s in suggestions(plan) if s.change.endswith("compute.recompute non_reentrant"))
    assert whole.peak_gib < selective.peak_gib < 0.9 * plan.memory.peak_gib
    assert 0 < selective.slowdown < whole.slowdown


@pytest.mark.parametrize("kept_gib", [20.0, 60.0, 2000.0])
def test_less_is_kept_as_far_as_it_fits_at_a_planned_cost(kept_gib):
    plan = plan_of(kept_gib, recompute="selective")
    (less,) = (s for s in suggestions(plan) if "recipe.kept_gib" in s.change)
    assert not any("compute.recompute" in s.change for s in suggestions(plan))
    assert 0 <= kept_in(less) < kept_gib
    assert less.peak_gib <= plan.usable_gib
    assert less.peak_gib < plan.memory.peak_gib
    assert less.slowdown > 0
    if plan.fits:  # though it was not enough
        assert kept_in(less) <= 0.75 * kept_gib
    else:
        assert less.peak_gib > plan.usable_gib - 3  # a layer's results beside half a GiB


def test_a_budget_that_is_used_up_or_unused_cannot_be_lowered():
    assert not [s for s in suggestions(plan_of(0.0, recompute="selective")) if "kept_gib" in s.change]
    assert not [s for s in suggestions(plan_of(20.0, recompute="non_reentrant")) if "kept_gib" in s.change]
