"""The mixtures of proxy runs: random shares around a centre, as RegMix draws them (arXiv 2407.01492, section 3.1)."""

from __future__ import annotations

import numpy as np

from recipe.base.errors import UserError
from recipe.scaling.mixture.law import Floats

# What the centre is multiplied by to be the parameters of a Dirichlet distribution, as in RegMix: from mixtures of few
# sources to mixtures near the centre.
STRENGTHS = (0.1, 5.0)
APART = 0.02  # two mixtures at least, as the sum of differences of shares
_TRIES = 1_000  # for each mixture


def sample_mixtures(centre_S: Floats, caps_S: Floats, count: int, least: float, seed: int = 0) -> Floats:
    """Shares of `count` mixtures, a row each, in multiples of `least`.

    Args:
        caps_S: the largest share of each source.

    Raises:
        UserError: the caps leave next to nothing.
    """
    rng, rows = np.random.default_rng(seed), list[Floats]()
    for _ in range(_TRIES * count):
        if len(rows) == count:
            break
        strength = np.exp(rng.uniform(*np.log(STRENGTHS)))
        steps_S = np.round(rng.dirichlet(strength * centre_S) / least)
        shares_S = steps_S / steps_S.sum()
        if (shares_S <= caps_S).all() and all(np.abs(shares_S - row_S).sum() >= APART for row_S in rows):
            rows.append(shares_S)
    if len(rows) < count:
        raise UserError(
            "the sources have too few tokens for mixtures that differ: lower --tokens-per-parameter or --width for the "
            "proxies, --target-tokens for the run, or add data"
        )
    return np.array(rows)
