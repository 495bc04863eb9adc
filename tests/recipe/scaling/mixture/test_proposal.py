"""The proposal: the planted optimum, its caps, and an interval that holds it about as often as it claims."""

from __future__ import annotations

import numpy as np
import pytest

from recipe.scaling.mixture.proposal import best_shares, propose
from recipe.scaling.mixture.regression import redraws, regression_of
from tests.recipe.scaling.mixture.planted import ALIKE, OPEN, losses, mixtures, truth

NATURAL = np.array([0.9, 0.1])


@pytest.fixture(scope="module")
def planted():
    return truth(mixtures(10))


def test_the_optimum_is_the_best_of_all_mixtures(planted):
    grid = np.linspace(0.001, 0.999, 999)
    objectives = [planted.objective(ALIKE, np.array([share, 1 - share])) for share in grid]
    best = best_shares(planted, ALIKE, OPEN)
    assert best.sum() == pytest.approx(1)
    assert best[0] == pytest.approx(grid[int(np.argmin(objectives))], abs=0.002)


def test_no_share_is_above_its_cap(planted):
    free = best_shares(planted, ALIKE, OPEN)
    capped = best_shares(planted, ALIKE, np.array([1.0, 0.2]))
    assert free[1] > 0.2
    assert capped == pytest.approx([0.8, 0.2], abs=1e-6)


def test_a_source_that_no_held_out_text_needs_gets_no_share(planted):
    assert best_shares(planted, {"zh": 1.0}, OPEN)[1] > best_shares(planted, ALIKE, OPEN)[1]
    shares = np.column_stack([planted.shares_RS * 0.8, np.full(10, 0.2)])
    useless = {s: f.law.losses(planted.shares_RS) for s, f in planted.fits.items()}
    best = best_shares(regression_of(shares, useless), ALIKE, np.ones(3))
    assert best.sum() == pytest.approx(1)


def test_the_planted_optimum_and_gain_are_inside_their_intervals_about_as_often_as_claimed(planted):
    best = best_shares(planted, ALIKE, OPEN)
    held, gained, trials = 0, 0, 6
    for seed in range(trials):
        shares = mixtures(12, seed)
        regression = regression_of(shares, losses(shares, 0.005, seed))
        proposal = propose(regression, redraws(regression, 20, seed), ALIKE, OPEN, NATURAL)
        gain = planted.objective(ALIKE, NATURAL) - planted.objective(ALIKE, proposal.shares_S)
        held += proposal.shares[0].holds(best[0])
        gained += proposal.gain.holds(gain)
        assert abs(proposal.shares_S[0] - best[0]) < 0.1
        assert proposal.shares[0].high - proposal.shares[0].low < 0.25
    assert held / trials >= 0.6
    assert gained / trials >= 0.6
