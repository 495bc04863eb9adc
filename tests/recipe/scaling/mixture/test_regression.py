"""The regression: how it rates itself, and that its interval of a new run holds as often as it claims."""

from __future__ import annotations

import numpy as np
import pytest

from recipe.scaling.mixture.regression import predict, redraws, regression_of
from tests.recipe.scaling.mixture.planted import ALIKE, LAWS, losses, mixtures


def test_runs_that_are_left_out_are_predicted_to_their_noise():
    shares = mixtures(16)
    each, together = regression_of(shares, losses(shares, 0.005)).qualities(ALIKE)
    for quality in (*each.values(), together):
        assert quality.predicts
        assert quality.rank_correlation > 0.9
        assert quality.error < 0.02 < quality.error_of_mean


def test_losses_that_do_not_depend_on_the_mixture_are_not_predicted():
    shares = mixtures(12)
    rng = np.random.default_rng(0)
    noise = {source: 2 * np.exp(0.05 * rng.standard_normal(len(shares))) for source in LAWS}
    _, together = regression_of(shares, noise).qualities(ALIKE)
    assert not together.predicts


def test_a_left_out_run_has_no_part_in_its_prediction():
    shares = mixtures(12)
    values = losses(shares, 0.0)
    values["en"][3] *= 1.5
    each, _ = regression_of(shares, values).qualities(ALIKE)
    assert each["en"].error > np.log(1.5) / np.sqrt(12) * 0.9


def test_what_the_losses_of_a_run_share_is_drawn_together():
    shares = mixtures(20)
    shared = np.exp(0.02 * np.random.default_rng(1).standard_normal(len(shares)))
    values = {source: law.losses(shares) * shared for source, law in LAWS.items()}
    regression = regression_of(shares, values)
    drawn = regression.redrawn(np.random.default_rng(0))
    ratios = [np.log(drawn.losses[s] / regression.fits[s].law.losses(shares)) for s in LAWS]
    assert np.corrcoef(ratios)[0, 1] > 0.8


def test_the_interval_of_a_new_run_holds_about_as_often_as_it_claims():
    new = np.array([0.4, 0.6])
    held, trials = 0, 6
    for seed in range(trials):
        shares = mixtures(10, seed)
        regression = regression_of(shares, losses(shares, 0.01, seed))
        interval = predict(regression, redraws(regression, 20, seed), "zh", new)
        run = LAWS["zh"].loss(new) * np.exp(0.01 * np.random.default_rng(1000 + seed).standard_normal())
        held += interval.holds(float(run))
    assert interval.level == pytest.approx(0.9)
    assert held / trials >= 0.6
