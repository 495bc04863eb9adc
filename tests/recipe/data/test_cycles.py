"""Cycles: the mixture to the place, counted without looking at data."""

from __future__ import annotations

import pytest

from recipe.data.cycles import cycle_places
from recipe.data.mixture import CYCLE


@pytest.mark.parametrize(
    "weights", [{"a": 1.0}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 1.0, "b": 1e-9}, {"a": 2.0, "b": 0.0}]
)
def test_places_fill_the_cycle_in_proportion(weights):
    places = cycle_places(weights)
    assert sum(places.values()) == CYCLE
    for name, weight in weights.items():
        assert abs(places[name] - CYCLE * weight / sum(weights.values())) <= 1
        assert (places[name] > 0) == (weight > 0)
