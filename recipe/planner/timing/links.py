"""How long a collective takes over NVLink and the network.

A ring over whole nodes crosses each node's network once, whatever the GPUs in it, so all of a node's NICs serve one
collective. Groups with one rank per node (expert-data-parallel groups when expert parallelism fills the node) run
side by side, one for each GPU of the node, and share its NICs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from recipe.base.hardware import Cluster

Link = Literal["NVLink", "network"]

NVLINK_EFFICIENCY = (
    0.77  # NCCL's bus bandwidth over the link's, large messages: 230 of 300 GB/s on DGX A100 (nccl-tests)
)
NETWORK_EFFICIENCY = 0.85  # InfiniBand or RoCE with GPUDirect, large messages
NVLINK_HOP_S, NETWORK_HOP_S = 1.5e-6, 6e-6  # latency of one step of a ring
START_S = 15e-6  # of any collective
# Of a collective's time, by which the computation beside it takes longer. Over NVLink NCCL holds 24 of an A100's 108 SMs
# while it runs: 24 channels (github.com/NVIDIA/nccl-tests issue 100, log of rings on an HGX A100; that all-to-alls hold as
# many is assumed), each a block that shares its SM with no other kernel (github.com/NVIDIA/nccl issue 689). A ring that
# waits for the network moves too little to hold as much; assumed.
CONTENTION: dict[Link, float] = {"NVLink": 24 / 108, "network": 0.08}


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: how many, and how many of them share a node."""

    ranks: int
    per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)


def group_of(cluster: Cluster, ranks: int, stride: int) -> Group:
    """`ranks` GPUs that are `stride` apart; consecutive ranks fill nodes."""
    return Group(ranks, min(ranks, max(1, cluster.gpus_per_node // stride)))


@dataclass(frozen=True)
class Links:
    """A cluster's links at the efficiency that collectives reach."""

    cluster: Cluster
    network_efficiency: float = NETWORK_EFFICIENCY

    def link_of(self, group: Group) -> Link:
        return "network" if group.nodes > 1 else "NVLink"

    def ring_s(self, op: str, size_bytes: float, group: Group, calls: int = 1) -> float:
        """Seconds of all-gathers, reduce-scatters or all-reduces of `size_bytes` together.

        Args:
            op: all_gather (bytes after it), reduce_scatter (before it), all_reduce (of the buffer).
            size_bytes: over all calls.
        """
        if group.ranks == 1:
            return 0.0
        passes = 2 if op == "all_reduce" else 1
        hops = (group.ranks - group.nodes) * NVLINK_HOP_S
        if group.nodes > 1:
            hops += group.nodes * NETWORK_HOP_S
        if (
            op == "all_reduce"
        ):  # NCCL's trees between nodes, chains inside (2.4: its blog "Massively scale your deep learning")
            tree = (group.per_node - 1) * NVLINK_HOP_S + math.ceil(math.log2(group.nodes)) * NETWORK_HOP_S
            hops = min(hops, tree)
        share = (group.ranks - 1) / group.ranks
        transfer = passes * size_bytes * share / self._ring_bytes_per_s(group)
        return transfer + calls * (START_S + passes * hops)

    def all_to_all_s(self, sent_bytes: float, group: Group, calls: int = 1, *, node_copies: float = 1.0) -> float:
        """Seconds of all-to-alls in which this rank sends `sent_bytes`, spread evenly over the group.

        `node_copies`: bytes over the network relative to a plain all-to-all, below 1 where a token is sent once to
        a node and fanned out there (DeepEP).
        """
        if group.ranks == 1:
            return 0.0
        inside = sent_bytes * (group.per_node - 1) / group.ranks
        outside = sent_bytes * (group.ranks - group.per_node) / group.ranks * node_copies
        nvlink = self.cluster.accelerator.nvlink_bytes_per_s * NVLINK_EFFICIENCY
        network = self.cluster.network_bytes_per_s / self.cluster.gpus_per_node * self.network_efficiency
        return max(inside / nvlink, outside / network) + calls * (START_S + group.nodes * NETWORK_HOP_S)

    def _ring_bytes_per_s(self, group: Group) -> float:
        nvlink = self.cluster.accelerator.nvlink_bytes_per_s * NVLINK_EFFICIENCY
        if group.nodes == 1:
            return nvlink
        side_by_side = self.cluster.gpus_per_node // group.per_node
        network = self.cluster.network_bytes_per_s / side_by_side * self.network_efficiency
        return min(nvlink, network) if group.per_node > 1 else network
