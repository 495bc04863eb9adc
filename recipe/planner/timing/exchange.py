"""What of an MoE layer's exchanges is exposed, where its tokens are divided in parts.

Two streams: one computes, the other exchanges, one exchange after another in the order in which they are started. A part's
exchange to its experts is started as soon as its rows are there; its way home as soon as its experts are done.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """Seconds of exchanges, by whether computation runs beside them."""

    exposed_s: float = 0.0
    hidden_s: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.exposed_s + other.exposed_s, self.hidden_s + other.hidden_s)

    def times(self, number: int) -> Overlap:
        return Overlap(number * self.exposed_s, number * self.hidden_s)


@dataclass(frozen=True)
class ExchangePass:
    """One pass through a layer from its first rows to its last; seconds of one part, but `beside_s` of all tokens."""

    prepare_s: float  # rows, or in the backward pass their gradients, before their exchange
    out_s: float  # exchange to what the experts compute
    experts_s: float
    home_s: float = 0.0  # exchange back
    finish_s: float = 0.0  # of what came back
    beside_s: float = 0.0  # shared experts
    beside_first: bool = True  # right after the first exchanges are started; else after the last experts


def overlap(one: ExchangePass, parts: int) -> Overlap:
    """What is exposed of a pass's exchanges: the end of its schedule less its computation."""
    computed = exchanged = 0.0  # when the streams are free
    out, home = [], []  # when a part's exchange has ended
    for _ in range(parts):
        computed += one.prepare_s
        exchanged = max(exchanged, computed) + one.out_s
        out.append(exchanged)
    if one.beside_first:
        computed += one.beside_s
    for arrival in out:
        computed = max(computed, arrival) + one.experts_s
        exchanged = max(exchanged, computed) + one.home_s
        home.append(exchanged)
    if not one.beside_first:
        computed += one.beside_s
    for arrival in home:
        computed = max(computed, arrival) + one.finish_s
    exposed = computed - parts * (one.prepare_s + one.experts_s + one.finish_s) - one.beside_s
    return Overlap(exposed, parts * (one.out_s + one.home_s) - exposed)
