"""The mixtures of proxy runs: random shares around a centre, in the way of RegMix (arXiv 2407.01492, section 3.1)."""

from __future__ import annotations

import numpy as np

from recipe.base.errors import UserError
from recipe.scaling.mixture.law import Floats

# The centre times a number between these, log-uniform, has the parameters of a Dirichlet distribution. RegMix takes 0.1 to 5,
# for 17 sources and 512 runs: most mixtures are of few sources. Of a dozen proxies such a mixture says how bad it is to have
# none of a source, and without it the others do not, so that here mixtures are nearer the centre.
STRENGTHS = (2.0, 20.0)
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
