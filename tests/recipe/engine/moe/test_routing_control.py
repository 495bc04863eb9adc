"""What the routers' control counts and exchanges, in one process; with real ranks it is test_routing_oracle.py's."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from recipe.base.run_config.routing import Routing
from recipe.engine.moe.routing_control import MicroBatch, RoutingControl
from recipe.model.recompute import contexts
from recipe.model.routing.balance import updated_bias
from recipe.model.routing.quantile import BINS

T, E, K, LAYERS = 8, 4, 2, 2
CHOSEN = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1], [1, 2], [1, 3], [0, 1], [2, 3]])
VALID = torch.tensor([True] * 6 + [False] * 2)
SOURCES = torch.tensor([0] * 4 + [1] * 4)


@pytest.fixture
def sums_over_ranks(monkeypatch):
    """One rank alone, and how many numbers each of its sums over ranks had."""
    sizes: list[int] = []
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 1)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: sizes.append(tensor.numel()))
    return sizes


def control(**settings) -> RoutingControl:
    biases = [torch.zeros(E) for _ in range(LAYERS)]
    return RoutingControl(
        Routing.model_validate(settings), biases, top_k=K, seq_length=T, accumulation=1, sources=["en", "zh"], seed=0
    )


def one_step(found: RoutingControl, *, observing: bool, forwards: int = 1, update_bias: bool = True):
    found.begin_step(1, token_weight=torch.tensor(1 / 6), observing=observing)
    found.begin_micro_batch(MicroBatch(0, VALID, SOURCES))
    logits = torch.arange(T * E, dtype=torch.float32).view(T, E)
    for forward in range(forwards):
        for layer in range(LAYERS):
            found.observe(layer, logits, logits.softmax(dim=-1), CHOSEN, CHOSEN, None)
        if forward == 0:
            found.end_forward()  # what follows is a recomputation
    return found.end_step(update_bias=update_bias)


@pytest.mark.parametrize("forwards", [1, 2])
def test_valid_tokens_are_counted_once_per_source(sums_over_ranks, forwards):
    sums = one_step(control(), observing=True, forwards=forwards)
    expected = [[4.0, 2.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0]]
    assert sums.counts_LOE.tolist() == [expected] * LAYERS
    assert sums.scalars["tokens"].tolist() == [6.0] * LAYERS
    assert sums.max_logit_L.tolist() == [6 * E - 1.0] * LAYERS  # the largest of the valid tokens


@pytest.mark.parametrize(
    ("settings", "observing", "sums"),
    [
        ({"bias_update_rate": 0.0}, False, []),
        ({"bias_update_rate": 0.001}, False, [LAYERS * E]),
        ({"bias_update_rate": 0.0, "aux_loss_scope": "global_batch"}, False, [LAYERS * E]),
        ({"bias_update_rate": 0.001, "aux_loss_scope": "global_batch"}, False, [LAYERS * E]),
        ({"bias_update_rate": 0.001}, True, [LAYERS * (3 * E + 7 + 1)]),
        ({"bias_update": "quantile"}, False, [LAYERS * (E * BINS + 1)]),
        ({"bias_update": "quantile", "bias_freeze_share": 1.0}, False, []),
    ],
    ids=[
        "nothing needs one",
        "bias",
        "global batch",
        "both share one",
        "a logged step shares it too",
        "margins",
        "a bias that never moves",
    ],
)
def test_ranks_exchange_one_sum_where_something_needs_it(sums_over_ranks, settings, observing, sums):
    one_step(control(**settings), observing=observing)
    assert sums_over_ranks == sums


def test_the_bias_is_updated_from_the_counts_of_the_step_unless_it_is_frozen(sums_over_ranks):
    found = control(bias_update_rate=0.01)
    one_step(found, observing=False, update_bias=False)
    assert torch.equal(torch.stack(found.bias_L), torch.zeros(LAYERS, E))
    one_step(found, observing=False)
    expected = updated_bias(torch.zeros(1, E), torch.tensor([[4.0, 4.0, 2.0, 2.0]]), 0.01)[0]
    for bias in found.bias_L:
        torch.testing.assert_close(bias, expected)


def test_an_observed_step_changes_no_weight_and_no_loss(sums_over_ranks):
    weights = []
    for observing in (False, True):
        found = control(z_loss_coef=0.1, aux_loss_coef=0.1)
        found.begin_step(1, token_weight=torch.tensor(1 / 6), observing=observing)
        found.begin_micro_batch(MicroBatch(0, VALID, SOURCES))
        logits = torch.linspace(-1, 1, T * E).view(T, E).requires_grad_()
        shares = logits.softmax(dim=-1)
        carried = shares.gather(1, CHOSEN)
        found.observe(0, logits, shares, CHOSEN, CHOSEN, None)
        found.attach_losses(0, carried, logits, shares, CHOSEN).sum().backward()
        weights.append(logits.grad)
    assert torch.equal(*weights)


# Biased scores of a global batch that no expert has its fair share of, with some padding.
BATCH_TE = torch.rand(8 * T, E, generator=torch.Generator().manual_seed(0)) + torch.linspace(-0.3, 0.3, E)
COUNTED_T = torch.arange(8 * T) % 5 > 0


def margins_of(rows: list[range], *, step: int = 2, first: bool = False, again: bool = False) -> RoutingControl:
    """A rank that has seen these rows of the batch, one micro-batch each; with counting passes, or recomputed layers."""
    found = control(bias_update="quantile", capacity={"mode": "drop", "factor": 1.0})
    found.begin_step(step, token_weight=torch.tensor(1.0), observing=False)
    for counting in (True, False) if first else (False,):
        for number, micro_batch in enumerate(rows):
            choice_TE, counted_T = BATCH_TE[list(micro_batch)], COUNTED_T[list(micro_batch)]
            found.begin_micro_batch(MicroBatch(number, counted_T, torch.zeros_like(counted_T, dtype=torch.int64)))
            forward, recomputation = contexts(())()
            for layer in range(LAYERS):
                with forward:
                    found.observe_margins(layer, choice_TE, choice_TE.topk(K).indices)
            found.end_forward()
            with recomputation:
                if again:
                    found.observe_margins(0, choice_TE.flip(0), choice_TE.flip(0).topk(K).indices)
        if counting:
            found.end_counting()
    return found


@pytest.mark.parametrize(
    ("ranks", "how"),
    [
        ([[range(32), range(32, 64)]], {}),
        ([[range(8 * n, 8 * n + 8) for n in reversed(range(8))]], {}),
        ([[range(16), range(16, 32)], [range(32, 48), range(48, 64)]], {}),
        ([[range(16 * n, 16 * n + 16)] for n in range(4)], {}),
        ([[range(32), range(32, 64)]], {"again": True}),
        ([[range(32), range(32, 64)]], {"first": True}),
    ],
    ids=["two micro-batches", "eight in another order", "two ranks", "four ranks", "recomputed", "counted first"],
)
def test_quantile_biases_are_the_same_bits_however_a_batch_is_divided(ranks, how, sums_over_ranks, monkeypatch):
    whole = margins_of([range(64)])
    whole.end_step(update_bias=True)
    expected = torch.stack(whole.bias_L)
    assert expected.abs().min() > 0.01
    controls = [margins_of(rows, **how) for rows in ranks]
    summed = torch.stack([one._margins for one in controls]).sum(dim=0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.copy_(summed))
    for one in controls:
        one.end_step(update_bias=True)
        assert torch.equal(torch.stack(one.bias_L), expected)


def test_a_step_forgets_the_margins_of_the_step_before(sums_over_ranks):
    found = margins_of([range(64)])
    found.end_step(update_bias=True)
    first = torch.stack(found.bias_L)
    found.begin_step(3, token_weight=torch.tensor(1.0), observing=False)
    found.end_step(update_bias=True)
    assert torch.equal(torch.stack(found.bias_L), first)


def test_the_first_step_is_trained_on_with_biases_of_its_own_batch(sums_over_ranks):
    later, found = margins_of([range(64)]), margins_of([range(64)], step=1)
    assert (later.starts_cold, found.starts_cold) == (False, True)
    found.end_cold_start()
    later.end_step(update_bias=True)
    assert torch.equal(torch.stack(found.bias_L), torch.stack(later.bias_L))
    found.end_step(update_bias=True)  # of no further token
    assert torch.equal(torch.stack(found.bias_L), torch.stack(later.bias_L))
