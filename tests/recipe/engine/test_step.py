"""How a batch becomes the model's arguments; what a step does with its micro-batches and its verdict, with an engine that only adds up tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipe.base.settings import Compute
from recipe.data.batch import Batch, make_batch
from recipe.engine import step as step_module
from recipe.engine.step import for_attention, model_inputs, run_step

RANKS, PAD = 2, 9


class Engine:
    """Its loss is the sum of a micro-batch's inputs."""

    device = torch.device("cpu")

    def __init__(self, happened: list[Any]):
        self.happened = happened

    def __call__(self, input_ids: torch.Tensor, targets: torch.Tensor | None = None, **_: Any) -> SimpleNamespace:
        self.happened.append("forward" if targets is not None else "counting")
        return SimpleNamespace(loss=input_ids.sum().float())

    def backward(self, loss: torch.Tensor) -> None:
        self.happened.append(("backward", round(loss.item(), 4)))

    def step(self) -> None:
        self.happened.append("step")


def batch(first: int) -> Batch:
    """One sequence of three tokens, the last of which is padding: two are routed, one has a loss."""
    return make_batch(
        np.array([[first, 2, PAD, PAD]]), np.array([0]), eod_id=0, pad_id=PAD, document_attention=False
    )  # fmt: skip


@pytest.fixture
def step(monkeypatch):
    """Runs a step; gives this rank's loss, whether the biases were moved, and what happened in order."""
    monkeypatch.setattr(step_module.dist, "all_reduce", lambda tensor: tensor.mul_(RANKS))
    monkeypatch.setattr(step_module.dist, "get_world_size", lambda: RANKS)

    def run(applied: bool | None, *, update_bias: bool = True, counts_first: bool = False, cold: bool = False):
        happened: list[Any] = []
        moved: list[bool] = []
        control = SimpleNamespace(
            counts_first=counts_first,
            starts_cold=cold,
            end_cold_start=lambda: happened.append("biases found"),
            begin_step=lambda step, token_weight, observing: happened.append(("weight", token_weight.item())),
            begin_micro_batch=lambda micro_batch: happened.append(micro_batch.number),
            end_forward=lambda: None,
            end_counting=lambda: happened.append("counted"),
            end_step=lambda *, update_bias: moved.append(update_bias),
        )
        guard: Any = None
        if applied is not None:
            offer = lambda loss, targets: happened.append(("offer", targets))  # noqa: E731
            guard = SimpleNamespace(offer=offer, verdict=lambda: SimpleNamespace(applied=applied))
        engine: Any = Engine(happened)
        total, _ = run_step(
            engine, control, Compute(), [batch(3), batch(5)], step=1, observing=False, update_bias=update_bias, guard=guard
        )  # fmt: skip
        return total.item(), moved, happened

    return run


@pytest.mark.parametrize(
    ("applied", "update_bias", "moves"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, False), (None, True, True)],
)
def test_the_expert_biases_are_not_moved_by_a_step_that_is_skipped(applied, update_bias, moves, step):
    assert step(applied, update_bias=update_bias)[1] == [moves]


def test_every_token_of_the_global_batch_weighs_the_same_and_the_guard_hears_before_the_update(step):
    loss, _, happened = step(True)
    assert loss == pytest.approx((3 + 2 + 9 + 5 + 2 + 9) * RANKS / 4)  # 4 targets of all ranks: 2 of this one
    assert happened == [
        ("weight", RANKS / 8),  # 8 routed tokens of all ranks: 4 of this one
        0, "forward", ("backward", 14 * RANKS / 4 * 2), ("offer", 2), "step",
        1, "forward", ("backward", 16 * RANKS / 4 * 2), ("offer", 2), "step",
    ]  # fmt: skip


def test_counting_goes_through_all_micro_batches_before_the_first_is_trained_on(step):
    happened = step(True, counts_first=True)[2]
    words = [word for word in happened if isinstance(word, str)]
    assert words == ["counting", "counting", "counted", "forward", "step", "forward", "step"]


@pytest.mark.parametrize("update_bias", [True, False], ids=["free", "frozen"])
def test_a_cold_start_finds_the_biases_before_it_counts_with_them(update_bias, step):
    happened = step(True, update_bias=update_bias, counts_first=True, cold=True)[2]
    words = [word for word in happened if isinstance(word, str)]
    cold = ["counting", "counting", "biases found"] if update_bias else []
    assert words == [*cold, "counting", "counting", "counted", "forward", "step", "forward", "step"]


def test_rows_join_for_flash_attention_which_finds_documents_in_one_row_only():
    sequences = np.array([[5, 1, 6, 7], [8, 9, 1, 5]])
    batch = make_batch(sequences, np.array([0, 0]), eod_id=1, pad_id=None, document_attention=True)
    inputs = model_inputs(batch)
    assert for_attention(inputs, Compute()) is inputs
    joined = for_attention(inputs, Compute(attention="flash_attention_2"))
    assert joined["input_ids"].tolist() == [[5, 1, 6, 8, 9, 1]]
    assert joined["position_ids"].tolist() == [[0, 1, 0, 0, 1, 2]]
    assert joined["cu_seq_lens_q"].tolist() == joined["cu_seq_lens_k"].tolist() == [0, 2, 3, 6]
    assert joined["max_length_q"] == joined["max_length_k"] == 3


def test_causal_attention_gets_rows_and_no_positions():
    batch = make_batch(np.array([[5, 1, 6]]), np.array([0]), eod_id=1, pad_id=None, document_attention=False)
    inputs = for_attention(model_inputs(batch), Compute(attention="flash_attention_2"))
    assert set(inputs) == {"input_ids"}
    assert inputs["input_ids"].shape == (1, 2)
