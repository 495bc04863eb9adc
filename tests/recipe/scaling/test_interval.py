"""The interval holds as many new runs as it claims."""

from __future__ import annotations

import numpy as np

from recipe.scaling.fit import fit
from recipe.scaling.interval import predict
from recipe.scaling.law import PUBLISHED_ALPHA, PUBLISHED_BETA, Law, Size

LAW = Law(0.9, 30.0, PUBLISHED_ALPHA, 60.0, PUBLISHED_BETA)
SIZES = [Size(n, 0.25, n * ratio) for n in (1e6, 2e6, 4e6) for ratio in (10, 40)]
TARGET = Size(2e7, 0.25, 8e8)
NOISE, LADDERS, DRAWS = 0.004, 24, 40


def test_the_interval_of_few_runs_holds_nine_of_ten_new_runs():
    held, widths = 0, []
    for seed in range(LADDERS):
        rng = np.random.default_rng(seed)
        losses = LAW.losses(SIZES) * np.exp(NOISE * rng.standard_normal(len(SIZES)))
        (predicted,) = predict(fit(SIZES, losses, "published"), [TARGET], level=0.9, draws=DRAWS, seed=seed)
        held += predicted.holds(LAW.loss(TARGET) * np.exp(NOISE * rng.standard_normal()))
        widths.append(predicted.high / predicted.low - 1)
    # of 24 draws at 0.9, fewer than 18 are held in one of 100 experiments
    assert held >= 18
    # an interval of everything would hold them too
    assert np.median(widths) < 0.1


def test_more_noise_widens_the_interval_and_a_nearer_target_narrows_it():
    quiet, loud = (LAW.losses(SIZES) * np.exp(s * np.random.default_rng(3).standard_normal(6)) for s in (0.002, 0.008))
    targets = [SIZES[2], TARGET]
    near, far = predict(fit(SIZES, quiet, "published"), targets, draws=DRAWS)
    loud_near, _ = predict(fit(SIZES, loud, "published"), targets, draws=DRAWS)
    assert near.low < near.value < near.high
    assert near.high / near.low < far.high / far.low
    assert near.high / near.low < loud_near.high / loud_near.low


def test_an_interval_in_another_unit_is_the_same_interval():
    (predicted,) = predict(fit(SIZES, LAW.losses(SIZES) * 1.001, "published"), [TARGET], draws=5)
    nats = predicted.times(1.5)
    assert (nats.value, nats.low, nats.level) == (predicted.value * 1.5, predicted.low * 1.5, predicted.level)
