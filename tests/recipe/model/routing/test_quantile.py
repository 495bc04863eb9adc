"""Quantile balancing against sorted margins, one token and one expert at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipe.model.routing.quantile import BINS, balanced_bias, bin_edges, margin_places, margin_quantiles

T, E, K = 4096, 24, 3


def scores(seed: int, *, tokens: int = T, softmax: bool = False, spread: float = 0.5) -> torch.Tensor:
    """Of experts that all tokens like more or less."""
    generator = torch.Generator().manual_seed(seed)
    liked = spread * torch.randn(E, generator=torch.Generator().manual_seed(9))
    logits = torch.randn(tokens, E, generator=generator) + liked
    return logits.softmax(dim=-1) if softmax else logits.sigmoid()


def histogram(choice_TE: torch.Tensor, valid_T: torch.Tensor | None = None) -> torch.Tensor:
    valid_T = torch.ones(len(choice_TE), dtype=torch.bool) if valid_T is None else valid_T
    places = margin_places(choice_TE, choice_TE.topk(K).indices, valid_T).flatten()
    return torch.bincount(places, minlength=E * BINS + 1)[:-1].view(1, E, BINS).int()


def plain_margins(choice_TE: torch.Tensor) -> np.ndarray:
    """Each expert's biased score minus the K-th best of the token's others."""
    choice = choice_TE.double().numpy()
    return np.array([[row[e] - np.sort(np.delete(row, e))[-K] for e in range(E)] for row in choice])


def load_max_over_mean(choice_TE: torch.Tensor) -> float:
    counts = torch.bincount(choice_TE.topk(K).indices.flatten(), minlength=E).double()
    return (counts.max() / counts.mean()).item()


@pytest.mark.parametrize("softmax", [False, True], ids=["sigmoid", "softmax"])
def test_quantiles_are_those_of_sorted_margins_within_a_bin(softmax):
    choice_TE = scores(0, tokens=512, softmax=softmax)
    sorted_TE, rank = np.sort(plain_margins(choice_TE), axis=0), round(512 * (1 - K / E))
    found = margin_quantiles(histogram(choice_TE), 1 - K / E)[0].numpy()
    edges = bin_edges().numpy()
    width = np.diff(edges)[np.searchsorted(edges, found) - 1]
    # So many are below whatever lies between two margins in their order.
    assert (found >= sorted_TE[rank - 1] - width).all()
    assert (found <= sorted_TE[rank] + width).all()


def test_an_expert_is_chosen_where_its_margin_is_positive():
    choice_TE = scores(1)
    above = histogram(choice_TE)[0, :, BINS // 2 :].sum(dim=-1)
    assert torch.equal(above, torch.bincount(choice_TE.topk(K).indices.flatten(), minlength=E))


@pytest.mark.parametrize("shift", [0.0, 0.7, -0.7], ids=["none", "loved", "unloved"])
def test_a_layer_is_balanced_within_three_steps_and_stays_so(shift):
    planted = torch.zeros(E)
    planted[:K] = shift
    bias_LE = planted[None] - planted.mean()
    loads = []
    for step in range(8):
        choice_TE = scores(step) + bias_LE[0]
        loads.append(load_max_over_mean(choice_TE))
        bias_LE = balanced_bias(bias_LE, histogram(choice_TE), K)
        assert bias_LE.mean().abs() < 1e-6
    noise = 1.25  # the largest of 24 counts around 512, each off by the chance of the step before and of its own
    assert loads[0] > 2
    assert max(loads[3:]) < noise, loads


def test_padding_counts_nowhere_and_a_step_without_a_token_changes_nothing():
    choice_TE = scores(2)
    valid_T = torch.arange(T) % 3 > 0
    assert torch.equal(histogram(choice_TE, valid_T), histogram(choice_TE[valid_T]))
    bias_LE = torch.linspace(-0.1, 0.1, E)[None]
    torch.testing.assert_close(balanced_bias(bias_LE, torch.zeros(1, E, BINS, dtype=torch.int32), K), bias_LE)


def test_margins_without_a_number_or_an_end_have_a_place():
    choice_TE = torch.tensor([[float("nan")] * E, [float("inf")] * K + [0.0] * (E - K)])
    places = margin_places(choice_TE, torch.arange(K).expand(2, K), torch.ones(2, dtype=torch.bool))
    assert places.min() >= 0
    assert (places[1] % BINS).tolist() == [BINS - 1] * K + [0] * (E - K)


def test_where_every_expert_is_chosen_biases_stay():
    bias_LE = torch.linspace(-0.1, 0.1, E)[None]
    places = margin_places(scores(3) + bias_LE, torch.arange(E).expand(T, E), torch.ones(T, dtype=torch.bool))
    all_chosen = torch.bincount(places.flatten(), minlength=E * BINS + 1)[:-1].view(1, E, BINS)
    torch.testing.assert_close(balanced_bias(bias_LE, all_chosen, E), bias_LE)
