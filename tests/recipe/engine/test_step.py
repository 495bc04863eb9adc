"""How a batch becomes the model's arguments."""

from __future__ import annotations

import numpy as np

from recipe.base.settings import Compute
from recipe.data.batch import make_batch
from recipe.engine.step import for_attention, model_inputs


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
