"""The mixture law: what it says, that it is fitted, and how it ranks published runs of other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import spearmanr

from benchmarks.mixture import published
from recipe.base.errors import UserError
from recipe.scaling.mixture.law import MixtureLaw, fewest_runs, fit, refit
from tests.recipe.scaling.mixture.planted import LAWS, losses, mixtures


def test_a_loss_is_the_floor_and_one_over_what_the_shares_are_worth():
    law = MixtureLaw(1.0, 0.5, (2.0, 1.0))
    assert law.loss(np.array([0.25, 0.0])) == pytest.approx(2.0)
    assert law.loss(np.array([0.25, 1.0])) == pytest.approx(1.5)


def test_the_gradient_is_that_of_the_loss():
    shares = np.array([0.3, 0.7])
    law = LAWS["en"]
    assert law.gradient(shares) == pytest.approx(approx_fprime(shares, law.loss, 1e-7), rel=1e-4)


def test_a_planted_law_is_fitted_from_runs_without_noise():
    shares = mixtures(10)
    for source, values in losses(shares, 0.0).items():
        fitted = fit(shares, values)
        assert fitted.noise < 1e-5
        assert fitted.law.floor == pytest.approx(LAWS[source].floor, rel=0.01)
        assert fitted.law.values == pytest.approx(LAWS[source].values, rel=0.02, abs=0.01)


def test_a_refit_of_the_same_losses_is_the_fit():
    shares = mixtures(10)
    values = losses(shares, 0.01)["zh"]
    fitted = fit(shares, values)
    again = refit(fitted.law, shares, values)
    assert again.law.losses(shares) == pytest.approx(fitted.law.losses(shares), rel=1e-3)


def test_the_noise_is_that_of_the_runs():
    shares = mixtures(40)
    assert fit(shares, losses(shares, 0.01)["en"]).noise == pytest.approx(0.01, rel=0.4)


def test_too_few_runs_are_refused():
    shares = mixtures(fewest_runs(2) - 1)
    with pytest.raises(UserError, match="5 runs are too few for a law of 2 sources, which needs 6; add proxies"):
        fit(shares, losses(shares, 0.0)["en"])


def test_published_runs_that_were_left_out_are_ranked_and_so_are_larger_ones():
    """RegMix's own regression, LightGBM on 512 runs, ranks the 64 runs of 1B parameters with 97.12% (arXiv 2407.01492, table 2)."""
    shares, by_target = published("1m")
    larger, of_larger = published("1b")
    for target, values in by_target.items():
        law = fit(shares[:96], values[:96]).law
        left_out = spearmanr(law.losses(shares[96:]), values[96:]).statistic
        transferred = spearmanr(law.losses(larger), of_larger[target]).statistic
        assert left_out > 0.95, target
        assert transferred > 0.9712, target
