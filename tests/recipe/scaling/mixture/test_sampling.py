"""The sampled mixtures: shares within their caps, apart from each other, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.scaling.mixture.sampling import APART, sample_mixtures

CENTRE = np.array([0.5, 0.3, 0.2])


def test_shares_are_within_their_caps_and_differ():
    caps = np.array([1.0, 0.5, 0.4])
    shares = sample_mixtures(CENTRE, caps, 20, 1 / 4096)
    assert shares.sum(1) == pytest.approx(np.ones(20))
    assert (shares <= caps).all()
    for number, row in enumerate(shares):
        assert all(np.abs(row - other).sum() >= APART for other in shares[:number])
    assert (shares.max(0) - shares.min(0) > 0.3).all()


def test_a_share_is_nothing_or_a_place_in_a_cycle():
    shares = sample_mixtures(CENTRE, np.ones(3), 40, 1 / 16)
    assert ((shares == 0) | (shares > 0.9 / 16)).all()
    assert (shares == 0).any()


def test_a_seed_gives_its_mixtures():
    first, again, other = (sample_mixtures(CENTRE, np.ones(3), 5, 1 / 4096, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_caps_that_leave_one_mixture_are_refused():
    with pytest.raises(UserError, match="the sources have too few tokens for mixtures that differ"):
        sample_mixtures(CENTRE, CENTRE, 2, 1 / 4096)
