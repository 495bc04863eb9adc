"""Collectives over NVLink and the network, against arithmetic by hand."""

from __future__ import annotations

import pytest

from recipe.base.hardware import cluster_of
from recipe.planner.timing.links import NVLINK_EFFICIENCY, Group, Links, group_of

CLUSTER = cluster_of("a100-80gb", 256, "400g")
LINKS = Links(CLUSTER, network_efficiency=1.0)
NODE = 50e9  # bytes/s: 400 Gb/s


def test_groups_know_how_many_of_them_share_a_node():
    assert group_of(CLUSTER, 256, 1) == Group(256, 8)
    assert group_of(CLUSTER, 8, 1) == Group(8, 8)
    assert group_of(CLUSTER, 32, 8) == Group(32, 1)
    assert group_of(CLUSTER, 64, 4) == Group(64, 2)


def test_a_ring_over_whole_nodes_crosses_each_network_once():
    assert LINKS.ring_s("all_gather", 100e9, Group(256, 8)) == pytest.approx(100e9 * 255 / 256 / NODE, rel=0.01)


def test_a_small_all_reduce_waits_for_a_tree_of_nodes_and_not_for_a_ring():
    start, nvlink_hop, network_hop = 15e-6, 1.5e-6, 6e-6
    tree = start + 2 * (7 * nvlink_hop + 5 * network_hop)  # 32 nodes of 8
    assert LINKS.ring_s("all_reduce", 8, Group(256, 8)) == pytest.approx(tree, rel=0.01)
    ring = start + 224 * nvlink_hop + 32 * network_hop
    assert LINKS.ring_s("all_gather", 8, Group(256, 8)) == pytest.approx(ring, rel=0.01)


def test_groups_with_one_rank_a_node_share_its_network():
    alone = LINKS.ring_s("reduce_scatter", 10e9, Group(32, 1))
    assert alone == pytest.approx(10e9 * 31 / 32 / (NODE / 8), rel=0.01)


def test_the_same_bytes_cross_the_network_whether_one_group_or_eight_gather_them():
    whole, parts = LINKS.ring_s("all_gather", 80e9, Group(256, 8)), LINKS.ring_s("all_gather", 10e9, Group(32, 1))
    assert whole == pytest.approx(parts, rel=0.05)


def test_inside_a_node_nvlink_counts_and_an_all_reduce_passes_twice():
    gather = LINKS.ring_s("all_gather", 8e9, Group(8, 8))
    assert gather == pytest.approx(7e9 / (300e9 * NVLINK_EFFICIENCY), rel=0.01)
    assert LINKS.ring_s("all_reduce", 8e9, Group(8, 8)) == pytest.approx(2 * gather, rel=0.01)


def test_an_all_to_all_that_leaves_the_node_is_bound_by_the_network():
    inside, across = LINKS.all_to_all_s(8e9, Group(8, 8)), LINKS.all_to_all_s(8e9, Group(16, 8))
    assert across == pytest.approx(4e9 / (NODE / 8), rel=0.01)
    assert across > 10 * inside
    assert LINKS.all_to_all_s(8e9, Group(16, 8), node_copies=0.5) == pytest.approx(across / 2, rel=0.01)


def test_small_messages_cost_their_latency():
    assert LINKS.ring_s("all_gather", 0, Group(1024, 8), calls=10) > 10 * 0.8e-3
    assert LINKS.ring_s("all_gather", 1e9, Group(1, 1)) == 0.0
