"""Proxy runs whose losses follow planted laws."""

from __future__ import annotations

import numpy as np

from recipe.scaling.mixture.law import Fit, Floats, MixtureLaw
from recipe.scaling.mixture.regression import Regression
from recipe.scaling.mixture.sampling import sample_mixtures

# Two languages, of which the second is worth little for the first, and the first more for the second.
LAWS = {"en": MixtureLaw(0.9, 0.4, (1.6, 0.15)), "zh": MixtureLaw(1.1, 0.5, (0.5, 2.0))}
ALIKE = {"en": 0.5, "zh": 0.5}
OPEN = np.ones(2)


def mixtures(runs: int, seed: int = 0) -> Floats:
    """Some of one source nearly alone, so that floor and exponent are told apart."""
    return sample_mixtures(np.array([0.1, 0.1]), OPEN, runs, 1 / 4096, seed)


def losses(shares_RS: Floats, noise: float, seed: int = 0) -> dict[str, Floats]:
    """What a run's losses share and what is their own, in equal parts."""
    rng = np.random.default_rng(seed)
    draws = [rng.standard_normal(len(shares_RS)) for _ in (*LAWS, "shared")]
    return {s: law.losses(shares_RS) * np.exp(noise * (own + draws[-1]) / np.sqrt(2)) for (s, law), own in zip(LAWS.items(), draws, strict=False)}  # fmt: skip


def truth(shares_RS: Floats) -> Regression:
    """The planted laws as a regression."""
    fits = {s: Fit(law, np.zeros(len(shares_RS))) for s, law in LAWS.items()}
    return Regression(shares_RS, losses(shares_RS, 0.0), fits)
