"""Reading ahead: the same results in the same order, before they are asked for, errors where they are taken."""

from __future__ import annotations

import threading

import pytest

from recipe.data.prefetch import Prefetcher


def test_what_follows_is_read_before_it_is_asked_for_and_once():
    reads, second_is_read = [], threading.Event()

    def read(position: int) -> int:
        reads.append(position)
        if position == 8:
            second_is_read.set()
        return 10 * position

    ahead = Prefetcher(read)
    assert ahead.take(0, 8) == 0
    assert second_is_read.wait(10)
    assert ahead.take(8, 16) == 80
    assert reads[:2] == [0, 8]
    assert ahead.take(4, 12) == 40  # gone back: what was read ahead is not what is asked for


def test_an_error_is_raised_where_its_result_is_taken():
    def read(position: int) -> int:
        if position == 8:
            raise ValueError("damaged")
        return position

    ahead = Prefetcher(read)
    assert ahead.take(0, 8) == 0
    with pytest.raises(ValueError, match="damaged"):
        ahead.take(8, 16)
    assert ahead.take(16, 24) == 16
