"""Capacity in whole tensors against the same rule by hand, on random and on cruel inputs."""

from __future__ import annotations

import math

import pytest
import torch

from recipe.base.run_config.routing import Capacity
from recipe.model.routing.capacity import apply_capacity, expert_capacity
from recipe.model.routing.router import preferences
from tests.recipe.engine.plain_moe import plain_limit

T, E, K = 40, 8, 3


def wishes(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.rand(T, E, generator=generator)
    if kind == "tied":
        return torch.full((T, E), 0.5)
    if kind == "skewed":  # everybody wants the same experts in the same order
        return torch.linspace(1, 0.1, E).expand(T, E) + 1e-3 * torch.rand(T, E, generator=generator)
    return preferences(torch.rand(T, E, generator=generator), None, 4, 2)  # half of the experts forbidden


@pytest.mark.parametrize("kind", ["random", "tied", "skewed", "grouped"])
@pytest.mark.parametrize("gives_way", ["lowest_score", "latest_position"])
@pytest.mark.parametrize("mode", ["drop", "reroute"])
@pytest.mark.parametrize("capacity", [1, 7, 15, 40])
def test_limits_equal_the_rule_by_hand(kind, gives_way, mode, capacity):
    for seed in range(3):
        wish_TE = wishes(kind, seed)
        chosen_TK = wish_TE.topk(K).indices
        valid = torch.rand(T, generator=torch.Generator().manual_seed(seed)) > 0.1
        experts, kept = apply_capacity(
            wish_TE, chosen_TK, valid, capacity, latest_first=gives_way == "latest_position", reroute=mode == "reroute"
        )
        settings = Capacity(mode=mode, gives_way=gives_way)
        by_hand = plain_limit(wish_TE.tolist(), chosen_TK.tolist(), valid.tolist(), settings, places=capacity)
        expected_experts, expected_kept = (torch.tensor(found) for found in by_hand)
        assert torch.equal(kept, expected_kept)
        assert torch.equal(experts[kept], expected_experts[kept])
        assert torch.bincount(experts[kept], minlength=E).max() <= capacity
        for token in range(T):  # an expert once at most
            of_token = experts[token][kept[token]].tolist()
            assert len(set(of_token)) == len(of_token)


def test_everything_has_a_place_when_each_expert_could_take_all():
    wish_TE = wishes("skewed", 0)
    chosen_TK = wish_TE.topk(K).indices
    assert expert_capacity(E / K, T, K, E) == T
    for reroute in (False, True):
        experts, kept = apply_capacity(
            wish_TE, chosen_TK, torch.ones(T, dtype=torch.bool), T, latest_first=False, reroute=reroute
        )
        assert torch.equal(experts, chosen_TK)
        assert kept.all()


def test_rerouting_fills_the_experts_that_dropping_leaves_idle():
    wish_TE = wishes("skewed", 1)
    chosen_TK = wish_TE.topk(K).indices
    places = expert_capacity(1.0, T, K, E)
    kept = {
        reroute: apply_capacity(
            wish_TE, chosen_TK, torch.ones(T, dtype=torch.bool), places, latest_first=False, reroute=reroute
        )[1]
        for reroute in (False, True)
    }
    assert kept[False].sum() == K * places
    assert kept[True].sum() > 0.9 * T * K


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_capacity_is_the_fair_share_times_the_factor_rounded_up(factor):
    assert expert_capacity(factor, 100, K, E) == math.ceil(factor * 100 * K / E)
