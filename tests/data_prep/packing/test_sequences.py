"""The packed order is that of the plain reference, loses nothing, and cuts what cannot be whole alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_prep._native import packed_order
from data_prep.packing.sequences import cuts_of, order_of, packing_facts, pieces_of
from tests.data_prep.packing.reference import packed_order as plain_order


@pytest.mark.parametrize("seq_length", [1, 2, 5, 16, 63, 64, 65, 130, 5000])
def test_the_order_is_that_of_the_plain_reference(seq_length):
    rng = random.Random(seq_length)
    for _ in range(40):
        most = rng.choice([seq_length, 2 * seq_length, 5 * seq_length, max(1, seq_length // 3)])
        lengths = [rng.randint(1, most) for _ in range(rng.randint(0, 60))]
        order = packed_order(np.array(lengths, np.int32), seq_length)
        assert order.tolist() == plain_order(lengths, seq_length), lengths


def test_an_empty_document_and_an_empty_sequence_are_refused():
    with pytest.raises(ValueError, match="a document without tokens"):
        packed_order(np.array([3, 0], np.int32), 4)
    with pytest.raises(ValueError, match="seq_length is 0"):
        packed_order(np.array([3], np.int32), 0)


def packed(lengths: list[int], seq_length: int) -> list[int]:
    """The lengths in their new order."""
    array = np.array(lengths)
    return array[order_of(array, seq_length)].tolist()


def test_documents_that_can_be_whole_are():
    assert sorted(packed([3, 5, 5, 3, 8, 2, 6], 8)) == [2, 3, 3, 5, 5, 6, 8]
    assert pieces_of(np.array(packed([3, 5, 5, 3, 8, 2, 6], 8)), 8).max() == 1


def test_two_documents_fill_what_the_largest_would_leave():
    lengths = packed([7, 6, 4, 4, 2], 8)  # 7 first would leave a token that no document fits
    assert cuts_of(np.array(lengths), 8)["documents_cut"] == 0
    assert lengths[-1] == 7


def test_a_document_longer_than_a_sequence_fills_a_gap_before_one_that_fits_is_cut():
    # 8 + 1 tokens would be in three sequences behind the 5; behind the 7 they are in two
    lengths = packed([7, 9, 5, 3], 8)
    pieces = dict(zip(lengths, pieces_of(np.array(lengths), 8).tolist(), strict=True))
    assert pieces == {7: 1, 9: 2, 5: 1, 3: 1}


def test_what_has_to_be_cut_goes_on_in_the_next_sequence():
    assert cuts_of(np.array(packed([5] * 8, 8)), 8)["documents_cut"] == 4  # at 8, 16, 24 and 32 tokens
    assert cuts_of(np.array(packed([20], 8)), 8) == {"documents_cut": 0, "tokens_cut": 0, "more_cuts": 0}


def test_sequences_stand_in_another_order_than_that_in_which_they_were_filled():
    lengths = np.arange(1, 65).repeat(2)
    filled = lengths[packed_order(lengths.astype(np.int32), 64).astype(np.int64)]
    shuffled = lengths[order_of(lengths, 64)]
    assert filled[:2].tolist() == [64, 64]
    assert shuffled[:2].tolist() != [64, 64]
    assert cuts_of(filled, 64) == cuts_of(shuffled, 64)


def test_a_corpus_with_documents_of_all_lengths_has_next_to_no_cuts():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 1.2, 20_000).astype(np.int64), 20, None)
    order = order_of(lengths, 2048)
    assert sorted(order.tolist()) == list(range(lengths.size))
    facts = packing_facts(lengths, order, 2048)
    assert facts["before"]["documents_cut"] > 0.2 * facts["fitting_documents"]
    assert facts["after"]["documents_cut"] < 0.001 * facts["fitting_documents"]
    assert facts["after"]["more_cuts"] < facts["before"]["more_cuts"]


def test_counts_are_of_documents_tokens_and_sequences():
    lengths = np.array([5, 5, 11, 3])
    facts = packing_facts(lengths, np.array([0, 3, 1, 2]), 8)
    assert (facts["fitting_documents"], facts["longer_documents"]) == (3, 1)
    assert facts["before"] == {"documents_cut": 1, "tokens_cut": 5, "more_cuts": 0}
    assert facts["after"] == {"documents_cut": 0, "tokens_cut": 0, "more_cuts": 0}
    assert (facts["sequences"], facts["tokens_in_no_sequence"]) == (2, 8)  # 24 tokens: the third lacks a target
    assert facts["log2_tokens"] == {"02": 1, "03": 2, "04": 1}
