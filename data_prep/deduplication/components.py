"""Connected components of a graph too large for one machine: alternating large-star and small-star rounds.

Kiveris et al., Connected Components in MapReduce and Beyond (SoCC 2014). An edge is a row (node, other). A
large-star joins the larger neighbours of each node to its smallest neighbour, a small-star the smaller ones; when
neither changes anything, every node hangs on the smallest of its component. Rounds grow with the logarithm of the
longest path. A graph that fits one partition takes its rounds in one task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from data_prep.core.shuffle import Shuffle, column, grouped, scatter

_MAX_ROUNDS = 64  # 2**32 nodes in a path need about as many


def star(node: np.ndarray, other: np.ndarray, *, large: bool) -> tuple[np.ndarray, np.ndarray]:
    """One star round over the complete neighbourhoods of some nodes.

    Args:
        node, other: uint64 edges; all edges of a node that occurs in `node` are here, in both directions.
        large: large-star, else small-star.

    Returns:
        new edges (node, smaller) with node > smaller, each once, sorted.
    """
    if not large:
        smaller = other < node
        node, other = node[smaller], other[smaller]
    if node.size == 0:
        return node, other
    order = np.lexsort((other, node))
    node, other = node[order], other[order]
    starts, ends = grouped(node)
    least = np.minimum(other[starts], node[starts]).repeat(ends - starts)
    if large:
        keep = other > node
        return unique_edges(other[keep], least[keep])
    # the node itself and its smaller neighbours all go to the smallest
    return unique_edges(np.concatenate((node, other)), np.concatenate((least, least)))


def components(node: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(member, smallest member of its component) for every node that is not the smallest itself; sorted."""
    edges = unique_edges(np.maximum(node, other), np.minimum(node, other))
    while True:
        before = edges
        for large in (True, False):
            edges = star(np.concatenate(edges), np.concatenate(edges[::-1]), large=large)
        if all(map(np.array_equal, edges, before)):
            return edges


def find_components(
    run_tasks: Callable[..., list[dict[str, Any]]], edges: Shuffle, make: Callable[[str], Shuffle]
) -> tuple[Shuffle, int]:
    """Components of the edges in an exchange (columns `node`, `other`, in both directions, key scatter(node)).

    Args:
        run_tasks: runs `function(task, number)` over tasks, and not again what is done (`Stage.run_tasks`).
        edges: the graph; left as it is.
        make: a new exchange of some name.

    Returns:
        an exchange of the same columns with `other` the smallest node of the component, once per `node` that is
        not itself the smallest, and how many partitions it takes to read.
    """
    if edges.partitions() == 1:
        found = make("components")
        run_tasks("components", partial(_all_at_once, source=edges, target=found), [0], 1)
        return found, 1
    current, before = edges, None
    for number in range(_MAX_ROUNDS):
        shapes = []
        for large in (True, False):
            name = f"components-{number:02d}-{'large' if large else 'small'}"
            target, parts = make(name), current.partitions()
            task = partial(_round, source=current, target=target, large=large, partitions=parts)
            results = run_tasks(name, task, list(range(parts)), None)
            shapes.append((sum(r["edges"] for r in results), sum(r["hash"] for r in results) % 2**64))
            target.merge(run_tasks)
            current = target
        if shapes == before:
            return current, current.partitions()
        before = shapes
    raise AssertionError("star rounds did not converge")


def _all_at_once(task: int, number: int, *, source: Shuffle, target: Shuffle) -> dict[str, Any]:
    table = source.read(0, 1)
    node, other = components(column(table, "node"), column(table, "other"))
    target.write(number, scatter(node), {"node": node, "other": other})
    return {"edges": int(node.size)}


def _round(
    partition: int, number: int, *, source: Shuffle, target: Shuffle, large: bool, partitions: int
) -> dict[str, Any]:
    table = source.read(partition, partitions)
    node, other = star(column(table, "node"), column(table, "other"), large=large)
    fingerprint = int(scatter(scatter(node) ^ other).sum(dtype=np.uint64)) if node.size else 0
    # The small star's result is read by the next large star, which needs both directions.
    both = (np.concatenate((node, other)), np.concatenate((other, node)))
    target.write(number, scatter(both[0]), {"node": both[0], "other": both[1]})
    return {"edges": int(node.size), "hash": fingerprint}


def unique_edges(node: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each edge once, sorted, none from a node to itself."""
    order = np.lexsort((other, node))
    node, other = node[order], other[order]
    new = np.ones(node.size, bool)
    new[1:] = (node[1:] != node[:-1]) | (other[1:] != other[:-1])
    new &= node != other
    return node[new], other[new]
