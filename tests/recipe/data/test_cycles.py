"""Cycles: the mixture to the place, counted without looking at data."""

from __future__ import annotations

import itertools

import pytest

from recipe.data.cycles import Cycles, cycle_places
from recipe.data.mixture import CYCLE, Stretch


@pytest.mark.parametrize(
    "weights", [{"a": 1.0}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 1.0, "b": 1e-9}, {"a": 2.0, "b": 0.0}]
)
def test_places_fill_the_cycle_in_proportion(weights):
    places = cycle_places(weights)
    assert sum(places.values()) == CYCLE
    for name, weight in weights.items():
        assert abs(places[name] - CYCLE * weight / sum(weights.values())) <= 1
        assert (places[name] > 0) == (weight > 0)


@pytest.mark.parametrize("phase", [0, 3])
def test_sequences_of_each_source_are_counted_one_by_one(phase):
    stretches = [Stretch(0, {"a": 0.7, "b": 0.3, "c": 0.0}), Stretch(1, {"a": 0.1, "b": 0.5, "c": 0.4})]
    cycles, seen = Cycles(stretches, 5, phase), dict.fromkeys("abc", 0)
    for index in range(2 * CYCLE + 100):
        if index % 997 == 0 or index % CYCLE < 2:
            assert cycles.count(index) == seen
        source, before = cycles.locate(index)
        assert before == seen[cycles.names[source]]
        seen[cycles.names[source]] += 1


def test_each_phase_has_patterns_of_its_own():
    patterns = []
    for phase in range(3):
        cycles = Cycles([Stretch(0, {"a": 0.5, "b": 0.5})], 0, phase)
        patterns.append([cycles.locate(index)[0] for index in range(CYCLE)])
    for one, other in itertools.combinations(patterns, 2):
        assert 0.4 < sum(a == b for a, b in zip(one, other, strict=True)) / CYCLE < 0.6
