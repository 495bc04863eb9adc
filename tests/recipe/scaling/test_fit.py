"""Laws are found again: planted ones, and a published one from its published points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipe.base.errors import UserError
from recipe.scaling.fit import fit, free_parameters
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law, Size

POINTS = Path(__file__).with_name("chinchilla_points.txt")
PLANTED = Law(0.9, 8.0, 0.28, 90.0, 0.4, 0.4)
TARGET = Size(5e7, 0.25, 1e9)
NOISE = 0.003


def ladder(*shares: float) -> list[Size]:
    return [Size(n, share, n * ratio) for n in (1e6, 2e6, 4e6, 8e6) for ratio in (5, 20, 80) for share in shares]


def noisy(law: Law, sizes: list[Size], seed: int, noise: float = NOISE) -> np.ndarray:
    return law.losses(sizes) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(sizes)))


def test_a_law_without_noise_is_found_exactly():
    sizes = ladder(0.125, 0.25)
    found = fit(sizes, PLANTED.losses(sizes), "free").law
    assert found.loss(TARGET) == pytest.approx(PLANTED.loss(TARGET), rel=1e-3)
    assert (found.alpha, found.beta, found.kappa) == pytest.approx((0.28, 0.4, 0.4), abs=0.03)


def test_one_bad_run_does_not_move_the_law():
    law = Law(0.9, 30.0, PUBLISHED_ALPHA, 60.0, PUBLISHED_BETA)
    sizes = ladder(0.25)
    losses = noisy(law, sizes, seed=0)
    losses[4] *= 1.5  # a run that diverged
    assert fit(sizes, losses, "published").law.loss(TARGET) == pytest.approx(law.loss(TARGET), rel=0.02)


def test_exponents_are_fitted_where_runs_are_enough():
    assert free_parameters(ladder(0.25), "auto") == ("E", "A", "B")
    assert free_parameters(ladder(0.25) * 2, "auto") == ("E", "A", "B", "alpha", "beta")
    assert "kappa" in free_parameters(ladder(0.125, 0.25), "auto")
    law = fit(ladder(0.25), noisy(PLANTED, ladder(0.25), 1)).law
    assert (law.alpha, law.beta) == (PUBLISHED_ALPHA, PUBLISHED_BETA)


def test_too_few_runs_are_refused_with_the_number_that_is_needed():
    sizes = ladder(0.25)[:4]
    with pytest.raises(UserError, match="4 runs are too few to fit E, A, B with an interval; add runs up to 5"):
        fit(sizes, PLANTED.losses(sizes), "published")


def test_a_published_law_is_found_from_its_published_points():
    millions, flops, losses = np.loadtxt(POINTS).T
    active = millions * 1e6
    sizes = [Size(n, 1.0, c * 1e18 / (6 * n)) for n, c in zip(active, flops, strict=True)]
    found = fit(sizes, losses, "free", delta=1e-3).law
    # Besiroglu et al., the fit of 240 points (arXiv 2404.10102, table 1)
    published = Law(1.8172, 482.01, PUBLISHED_ALPHA, 2085.43, PUBLISHED_BETA)
    assert (found.alpha, found.beta) == pytest.approx((published.alpha, published.beta), abs=0.05)
    assert abs(found.E - published.E) < 0.1
    chinchilla = Size(70e9, 1.0, 1.4e12)
    assert found.loss(chinchilla) == pytest.approx(published.loss(chinchilla), rel=0.03)
    inside = [Size(n, 1.0, 20 * n) for n in (1e8, 1e9, 1e10)]
    assert found.losses(inside) == pytest.approx(published.losses(inside), rel=0.01)
