"""A permutation without a table: everything once, in an order of its own."""

from __future__ import annotations

import numpy as np
import pytest

from recipe.data.permutation import Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 4097])
def test_a_permutation_visits_everything_once(size):
    permutation = Permutation(size, "key")
    visited = [permutation(i) for i in range(size)]
    assert sorted(visited) == list(range(size))
    assert permutation.table().tolist() == visited


def test_permutations_differ_by_key_and_are_not_the_identity():
    first, second = ([Permutation(1000, key)(i) for i in range(1000)] for key in ("a", "b"))
    assert first != second
    assert sum(a == i for i, a in enumerate(first)) < 20
    assert abs(np.corrcoef(first, range(1000))[0, 1]) < 0.1
