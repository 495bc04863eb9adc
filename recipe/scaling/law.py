"""The scaling law: held-out loss as a function of active parameters, active share and tokens.

    loss = E + A / (N * share**-kappa)**alpha + B / D**beta

N are the active parameters and D the tokens of a run: the form of Chinchilla's third approach (arXiv 2203.15556) with one more
parameter for sparsity. `share` is the part of a layer's experts that a token passes, Ling's activation ratio (arXiv
2507.17702). At kappa 0 the experts that a token does not pass are worth nothing, at 1 as much as those that it passes. The
joint MoE laws (arXiv 2502.05172) let a function of the number of experts scale both terms and their exponents, with four
parameters in place of kappa and those of the function: a ladder of a dozen runs cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.base.model_shape import ModelShape

Floats = NDArray[np.float64]

# Exponents for ladders of too few runs to fit their own: Besiroglu et al. (arXiv 2404.10102), the fit of Chinchilla's runs
# that repairs the published one. Of dense models of 70M to 16B parameters.
PUBLISHED_ALPHA, PUBLISHED_BETA = 0.3478, 0.3658


@dataclass(frozen=True)
class Size:
    """What of a run the law knows.

    Args:
        active: parameters that multiply in a token's forward pass: all active ones but the embedding's and the norms'.
        share: of a layer's experts, shared ones included, those that a token passes.
        tokens: trained on.
    """

    active: float
    share: float
    tokens: float


def size_of(shape: ModelShape, tokens: float) -> Size:
    """The size of a run of a model."""
    active = shape.active_parameters()
    passed = shape.num_experts_per_tok + shape.n_shared_experts
    share = passed / (shape.n_routed_experts + shape.n_shared_experts)
    return Size(sum(active.values()) - active["embedding"] - active["norm"], share, tokens)


def columns(sizes: list[Size]) -> tuple[Floats, Floats, Floats]:
    """Active parameters, shares and tokens of runs, an array each."""
    table = np.array([(size.active, size.share, size.tokens) for size in sizes], float)
    return table[:, 0], table[:, 1], table[:, 2]


@dataclass(frozen=True)
class Law:
    """One law with all of its numbers; losses are in the unit that it was fitted in."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    kappa: float = 0.0

    def losses(self, sizes: list[Size]) -> Floats:
        active, share, tokens = columns(sizes)
        capacity = active * share**-self.kappa
        return np.asarray(self.E + self.A * capacity**-self.alpha + self.B * tokens**-self.beta)

    def loss(self, size: Size) -> float:
        return float(self.losses([size])[0])

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))
