"""Weights of merged checkpoints that stand for a decay of the learning rate.

Source: WSM, arXiv 2507.17634. Checkpoints 0 ... k of a constant learning rate, averaged with weights c, are checkpoint 0 plus the
updates of each interval i = 1 ... k times w_i = c_i + ... + c_k, since all checkpoints from i on hold those updates. To first
order, where gradients do not depend on the decay, this is the end of a run whose learning rate was w_i times the constant one in
interval i. Read the other way, a decay gives the weights: c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k. They sum to 1.

Here w_i is the mean of the decay over interval i, in tokens, so that the checkpoints need not be equally far apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from recipe.base.errors import UserError

MEAN = "mean"  # equal weights; of equal intervals it is a line that would reach zero one interval after the last checkpoint
# By decay from 1 to 0 over x from 0 to 1: its integral from 0 to x.
INTEGRALS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x - x * x / 2,  # of 1 - x
    "cosine": lambda x: x / 2 + math.sin(math.pi * x) / (2 * math.pi),  # of (1 + cos(pi x)) / 2
    "one_minus_sqrt": lambda x: x - 2 / 3 * x**1.5,  # of 1 - sqrt(x)
}
DECAYS = (*INTEGRALS, MEAN)


def decay_weights(decay: str, tokens: Sequence[int]) -> list[float]:
    """The weight of each checkpoint.

    Args:
        decay: one of DECAYS, from the first checkpoint to the last.
        tokens: that each checkpoint was trained on, ascending.

    Raises:
        UserError: two checkpoints are of the same tokens, between which there is no decay.
    """
    if decay == MEAN:
        return [1 / len(tokens)] * len(tokens)
    if any(before == after for before, after in pairwise(tokens)):
        raise UserError(
            f"two of the checkpoints are of the same {max(tokens):,} tokens or less, and --decay {decay} is over tokens; "
            f"merge them with --decay {MEAN}, or give --weights"
        )
    integral, span = INTEGRALS[decay], tokens[-1] - tokens[0]
    places = [(count - tokens[0]) / span for count in tokens]
    rates = [(integral(end) - integral(begin)) / (end - begin) for begin, end in pairwise(places)]
    return [before - after for before, after in pairwise([1.0, *rates, 0.0])]


def given_weights(weights: Sequence[float], checkpoints: int) -> list[float]:
    """Weights in the proportions that were given.

    Raises:
        UserError: not one for each checkpoint, or one that is no weight.
    """
    if len(weights) != checkpoints:
        raise UserError(f"--weights has {len(weights)} numbers for {checkpoints} checkpoints; give one for each")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError("--weights must be numbers above zero; leave out the checkpoints that are to weigh nothing")
    return [weight / math.fsum(weights) for weight in weights]
