"""Targets, padding and document positions of a batch."""

from __future__ import annotations

import numpy as np

from recipe.data.batch import document_positions, make_batch

EOD, PAD = 1, 2


def test_positions_restart_after_each_document():
    tokens = np.array([[5, 6, EOD, 7, EOD, EOD, 8, 9], [EOD, 5, 6, 7, 8, 9, 5, EOD]])
    assert document_positions(tokens, EOD).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_targets_are_the_next_tokens_and_padding_has_none():
    sequences = np.array([[5, 6, EOD, 7, 8], [5, EOD, PAD, PAD, PAD]])
    batch = make_batch(sequences, np.array([0, 1]), eod_id=EOD, pad_id=PAD, document_attention=False)
    assert batch.tokens.tolist() == [[5, 6, EOD, 7], [5, EOD, PAD, PAD]]
    assert batch.targets.tolist() == [[6, EOD, 7, 8], [EOD, -100, -100, -100]]
    assert batch.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.positions is None


def test_without_a_padding_token_every_token_counts():
    batch = make_batch(np.array([[5, PAD, 6]]), np.array([0]), eod_id=EOD, pad_id=None, document_attention=True)
    assert batch.targets.tolist() == [[PAD, 6]]
    assert batch.valid.all()
    assert batch.positions.tolist() == [[0, 1]]
