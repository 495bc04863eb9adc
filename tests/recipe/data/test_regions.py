"""Ranges of a source for several sequence lengths: disjoint, enough for the plan, and where the plan leaves them."""

from __future__ import annotations

import random

import pytest

from recipe.data.regions import Demand, split_source


def test_each_length_has_what_it_is_planned_to_read_and_the_first_has_the_rest():
    demands = [Demand(300, 30, 4), Demand(200, 20, 8), Demand(100, 10, 16)]
    assert split_source(1000, demands) == [(0, 670), (780, 1000), (670, 780)]


def test_the_spare_gives_way_before_the_plan_does():
    assert split_source(330, [Demand(100, 20, 4), Demand(200, 40, 8)]) == [(0, 110), (110, 330)]
    assert split_source(300, [Demand(100, 20, 4), Demand(200, 40, 8)]) == [(0, 100), (100, 300)]


def test_beyond_one_epoch_the_regions_are_in_proportion():
    assert split_source(300, [Demand(1000, 20, 4), Demand(2000, 40, 8)]) == [(0, 100), (100, 300)]


def test_a_small_demand_has_one_sequence():
    assert split_source(1000, [Demand(100_000, 32, 4), Demand(64, 64, 64)]) == [(0, 935), (935, 1000)]


def test_where_nothing_is_left_the_last_range_is_empty():
    assert split_source(60, [Demand(4, 4, 4), Demand(64, 64, 64)]) == [(0, 0), (0, 60)]


@pytest.mark.parametrize("seed", range(20))
def test_ranges_fill_the_source_and_hold_every_plan_that_fits(seed):
    draw = random.Random(seed)
    lengths = draw.sample([4, 16, 64, 256], draw.randint(2, 4))
    demands = [Demand(draw.randint(1, 50) * n, draw.randint(1, 9) * n, n) for n in lengths]
    size = draw.randint(2000, 40_000)
    regions = split_source(size, demands)
    assert [edge for region in sorted(regions) for edge in region[:1]] == [0, *(end for _, end in sorted(regions)[:-1])]
    assert max(end for _, end in regions) == size
    planned = sum(demand.planned for demand in demands)
    for demand, (first, end) in zip(demands, regions, strict=True):
        share = min(1, size / planned) * demand.planned
        assert end - first >= share - sum(lengths) - len(lengths)
        if planned + sum(demand.spare for demand in demands) <= size:
            assert end - first >= demand.planned + demand.spare
