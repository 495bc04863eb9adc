"""What a large batch costs in tokens: how many more a loss takes than with the batch of the ladder's runs.

A batch of B tokens takes 1 + B / B_crit times the tokens that the smallest batches take for the same loss (McCandlish et al.,
arXiv 1812.06162). B_crit rises with the tokens of a run and hardly with the model: Zhang et al. (arXiv 2410.21676; dense models
of 85M to 1.2B parameters, 1.7B to 25B tokens) find the exponent 0.47 and Bergsma et al. (arXiv 2505.13738) about the same. A
law is of runs that have a batch themselves, so that what counts is the ratio to theirs.

What the rules do not have: MoE models, and runs of more than 25B tokens. Kaplan's rule (arXiv 2001.08361), a power of the loss,
gives a quarter to a half of the B_crit of Zhang's own steps and is left out. OLMo 1B lost 0.002 nats in 608B tokens with 16.8M
tokens a step in place of 4.2M (Merrill et al., arXiv 2505.23971, table 1, after its decay), where the published rule here asks
for a third more tokens: it may be dear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import brentq

from recipe.scaling.cost.span import Span
from recipe.scaling.rungs import optimal_batch_tokens


@dataclass(frozen=True)
class CriticalBatch:
    """The batch with which a loss takes twice the tokens of small ones, in tokens, as a power of the tokens of the run."""

    at_1t: float
    exponent: float

    def of(self, tokens: float) -> float:
        return self.at_1t * (tokens / 1e12) ** self.exponent

    def needed(self, tokens: float, batch_tokens: float) -> float:
        """Tokens with one batch for the loss that small batches have after `tokens`."""
        return tokens + batch_tokens * tokens / self.of(tokens) if tokens else 0.0


# Zhang et al.: 22.91 * D**0.47 sequences of 512 tokens take a fifth more steps than as many tokens in small batches would, with D
# in millions of tokens; by the form above, five times as many sequences take twice the tokens. The numbers are as others quote them
# and the units follow from the steps below, which were read at their source.
PUBLISHED = CriticalBatch(5 * 22.91 * 512 * 1e6**0.47, 0.47)
# Their steps to a loss by batch (github.com/hlzhang109/critical-batch-size, plots/chinchilla.ipynb), with the form fitted to those
# of each of five models, and a power of the tokens to the five B_crit: with the published exponent, and with a free one. The
# published rule has 1.2 to 1.7 times their B_crit, the less the more tokens.
REFITTED = CriticalBatch(2.84e7, 0.47)
REFITTED_FREELY = CriticalBatch(5.78e7, 0.610)
RULES = (PUBLISHED, REFITTED, REFITTED_FREELY)  # the expected one, and others that tell how far it may be off


def tokens_factor(rule: CriticalBatch, batch_tokens: float, tokens: float) -> float:
    """Tokens that a loss takes with a batch over those that it takes with the batch of the ladder's rule.

    A batch below that one is not priced: it saves no tokens (Step Law's batch is the one of the lowest loss).

    Args:
        tokens: of the run with the ladder's batch.
    """
    critical, usual = rule.of(tokens), optimal_batch_tokens(tokens)
    return (critical + max(batch_tokens, usual)) / (critical + usual)


def batch_price(batch_tokens: float, tokens: float) -> Span:
    """The factor by the published rule, and the least and the most of all rules."""
    factors = [tokens_factor(rule, batch_tokens, tokens) for rule in RULES]
    return Span(factors[0], min(factors), max(factors))


def worth(rule: CriticalBatch, phases: Sequence[tuple[float, float]]) -> float:
    """After how many tokens small batches have the loss of phases, each with its tokens and its batch.

    Where a phase begins only the loss counts, not the batches that led to it.
    """
    reached = 0.0
    for tokens, batch in phases:
        ends = rule.needed(reached, batch) + tokens
        reached = brentq(lambda t, b=batch, e=ends: rule.needed(t, b) - e, reached, reached + tokens)
    return float(reached)


def worth_span(phases: Sequence[tuple[float, float]]) -> Span:
    """By the published rule, and the least and the most of all rules."""
    values = [worth(rule, phases) for rule in RULES]
    return Span(values[0], min(values), max(values))
