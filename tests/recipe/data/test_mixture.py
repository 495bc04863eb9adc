"""The plan of a mixture: temperature, caps and the annealed part, and every contradiction told."""

from __future__ import annotations

import pytest

from recipe.base.errors import UserError
from recipe.base.run_config.data import Mixture
from recipe.data.mixture import CYCLE, PhaseData, capped, mixture_weights, plan_mixture

TOKENS = {"en": 900.0 * CYCLE, "zh": 100.0 * CYCLE}


def data(run_tokens=1000, sizes=TOKENS, seq_length=10, folder="one", name="", **mixture) -> PhaseData:
    """A phase of so many times `CYCLE` tokens."""
    return PhaseData(Mixture(**mixture), seq_length, run_tokens * CYCLE, folder, sizes, name)


def plan(run_tokens=1000, **mixture):
    (stretches,) = plan_mixture([data(run_tokens, **mixture)])
    return stretches


def test_temperature_lifts_the_smaller_source():
    assert mixture_weights(TOKENS, 1.0) == {"en": 0.9, "zh": 0.1}
    assert mixture_weights(TOKENS, 0.5) == {"en": 0.75, "zh": 0.25}
    assert mixture_weights(TOKENS, 0.0) == {"en": 0.5, "zh": 0.5}


def test_factors_multiply_and_explicit_weights_override():
    (phase,) = plan(alpha=1.0, factors={"zh": 9.0})
    assert phase.weights == pytest.approx({"en": 0.5, "zh": 0.5})
    (phase,) = plan(alpha=1.0, weights={"en": 1, "zh": 3})
    assert phase.weights == {"en": 0.25, "zh": 0.75}


def test_no_source_is_read_more_often_than_the_cap_and_the_others_fill_in():
    (phase,) = plan(alpha=0.0, max_epochs=2.0)
    assert phase.weights == pytest.approx({"en": 0.8, "zh": 0.2})  # 200 of 1,000 tokens are two epochs of zh


def test_the_annealed_part_lifts_its_tiers_and_claims_its_data_first():
    first, last = plan(
        alpha=1.0,
        max_epochs=1.2,
        tiers={"en": 2, "zh": 1},
        anneal={"share": 0.2, "tier_weights": {1: 4.0, 2: 0.5}},
    )
    assert (first.first_cycle, last.first_cycle) == (0, 80)
    assert last.weights == pytest.approx({"en": 0.45 / 0.85, "zh": 0.4 / 0.85})
    read = {name: 800 * first.weights[name] + 200 * last.weights[name] for name in TOKENS}
    assert read["zh"] == pytest.approx(120)  # its cap
    assert sum(read.values()) == pytest.approx(1000)


def test_shares_are_kept_where_nothing_is_short():
    assert capped({"a": 0.6, "b": 0.4}, {"a": 1e9, "b": 1e9}, 100) == pytest.approx({"a": 0.6, "b": 0.4})
    assert capped({"a": 1.0, "b": 0.0}, {"a": 100, "b": 100}, 50) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"weights": {"en": 1.0}}, "name each source once"),
        ({"weights": {"en": 1.0, "zh": -1.0}}, "must not be negative"),
        ({"factors": {"fr": 1.0}}, "factors names fr"),
        ({"tiers": {"fr": 1}}, "tiers names fr"),
        ({"max_epochs": 0.5}, "max_epochs leaves 2.05e.06 tokens for 4.1e"),
        ({"anneal": {"share": 0.999, "tier_weights": {}}}, "leaves nothing before it"),
        (
            {"tiers": {"en": 1, "zh": 1}, "anneal": {"share": 0.5, "tier_weights": {1: 0}}},
            "leaves every source a weight of zero",
        ),
    ],
)
def test_contradictions_are_told(mixture, message):
    with pytest.raises(UserError, match=message):
        plan(**mixture)


def test_a_config_is_asked_for_every_tier():
    problems = Mixture(tiers={"en": 3}, anneal={"share": 0.1, "tier_weights": {1: 2, 2: -1}}).problems()
    assert problems == [
        "data.mixture.anneal.tier_weights: 2 has a negative weight",
        "data.mixture.tiers names tier 3, which anneal.tier_weights has no weight for",
    ]


def test_a_source_without_a_tier_keeps_its_weight_in_the_annealed_part():
    tokens = {"code": 100.0, "en": 100.0, "zh": 100.0}
    anneal = {"share": 0.5, "tier_weights": {1: 4.0, 2: 1.0}}
    first, last = plan(100, sizes=tokens, tiers={"en": 2, "zh": 1}, anneal=anneal)
    assert first.weights == pytest.approx(dict.fromkeys(tokens, 1 / 3))
    assert last.weights == pytest.approx({"code": 1 / 6, "en": 1 / 6, "zh": 4 / 6})


def test_a_source_of_weight_zero_is_left_out_with_and_without_caps():
    for cap in ({}, {"max_epochs": 2.0}):
        (phase,) = plan(weights={"en": 2, "zh": 0}, **cap)
        assert phase.weights == {"en": 1.0, "zh": 0.0}
    with pytest.raises(UserError, match=r"leaves 3\.69e\+05 tokens for 4\.1e"):  # not zh's, which nobody reads
        plan(weights={"en": 2, "zh": 0}, max_epochs=0.1)


def test_weights_near_the_largest_number_are_shares_too():
    (phase,) = plan(weights={"en": 1e308, "zh": 1e308})
    assert phase.weights == {"en": 0.5, "zh": 0.5}
    (phase,) = plan(weights={"en": 1e-320, "zh": 1e-320})
    assert phase.weights == {"en": 0.5, "zh": 0.5}


@pytest.mark.parametrize(
    "mixture",
    [
        {"factors": {"en": -1.0}},
        {"factors": {"en": -0.5}},
        {"factors": {"en": 0.0, "zh": 0.0}},
        {"factors": {"en": float("nan")}},
        {"factors": {"en": float("inf")}},
        {"weights": {"en": 0.0, "zh": 0.0}},
        {"weights": {"en": float("nan"), "zh": 1.0}},
        {"weights": {}},
        {"weights": {"en": 1.0, "zh": 1.0, "no": 1.0}},
        {"anneal": {"share": 1e-9, "tier_weights": {}}},
        {"anneal": {"share": 0.004, "tier_weights": {}}},
        {"tiers": {"en": 1, "zh": 1}, "anneal": {"share": 0.5, "tier_weights": {1: -1.0}}},
    ],
)
def test_no_mixture_ends_in_an_error_of_arithmetic(mixture):
    with pytest.raises(UserError):
        plan(**mixture)


def read_by(phases: list[PhaseData]) -> list[dict[str, float]]:
    """Of each phase, the tokens of each source, in `CYCLE`."""
    plans = plan_mixture(phases)
    return [
        {name: weight * phase.tokens / CYCLE for name, weight in only.weights.items()}
        for phase, (only,) in zip(phases, plans, strict=True)
    ]


def test_epochs_are_capped_over_all_phases_and_the_last_claim_first():
    even = {"alpha": 0.0, "max_epochs": 2.0}
    first, middle, last = read_by([data(600, **even), data(100, **even), data(300, **even)])
    assert last == pytest.approx({"en": 150, "zh": 150})
    assert middle == pytest.approx({"en": 50, "zh": 50})
    assert first == pytest.approx({"en": 600, "zh": 0})  # nothing is left of zh's two epochs
    (_, shorter, again) = read_by([data(600, **even), data(300, **even), data(100, **even)])
    assert (shorter, again) == (pytest.approx({"en": 150, "zh": 150}), pytest.approx({"en": 50, "zh": 50}))


def test_a_cap_of_one_phase_counts_what_phases_without_one_read():
    first, last = read_by([data(500, alpha=0.0, max_epochs=1.0), data(160, alpha=0.0)])
    assert last == pytest.approx({"en": 80, "zh": 80})
    assert first == pytest.approx({"en": 480, "zh": 20})


def test_a_cap_holds_over_lengths_and_not_over_folders():
    even = {"alpha": 0.0, "max_epochs": 1.0}
    (first, _) = read_by([data(300, **even), data(100, seq_length=20, **even)])
    assert first == pytest.approx({"en": 250, "zh": 50})
    (first, _) = read_by([data(200, **even), data(100, folder="another", **even)])
    assert first == pytest.approx({"en": 100, "zh": 100})


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"max_epochs": 1.0}, r"^phases\.0 \(base\): data\.mixture\.max_epochs leaves .* for .*; raise it"),
        ({"tiers": {"fr": 1}}, r"^phases\.0 \(base\): data\.mixture\.tiers names fr"),
        (
            {"anneal": {"share": 0.5, "tier_weights": {}}},
            r"^phases\.0 \(base\): data\.mixture\.anneal is of a run without phases; remove it, and give a last phase",
        ),
    ],
    ids=["cap", "names", "anneal"],
)
def test_what_is_wrong_with_a_phase_is_told_with_its_name(mixture, message):
    with pytest.raises(UserError, match=message):
        plan_mixture([data(800, name="base", **mixture), data(300, name="long")])
