#!/usr/bin/env python3
"""What ranks measure of each other: matmuls on every GPU at once, collectives inside hosts and between each two of them.

Started by launch/preflight.py under the launcher; rank 0 writes the result.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.cluster.speeds import PROGRESS
from recipe.base.arguments import positive_int
from recipe.base.files import write_json
from recipe.base.ranks import leave

REPEATS = 5
PAIRS_EVERY_S = 5.0  # between two lines about pairs


def rounds(hosts: int) -> list[list[tuple[int, int]]]:
    """A tournament: each two hosts meet once, and in a round nobody meets two others."""
    seats = list(range(hosts + hosts % 2))
    pairs_of_rounds = []
    for _ in range(len(seats) - 1):
        pairs = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        pairs_of_rounds.append([(min(p), max(p)) for p in pairs if max(p) < hosts])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs_of_rounds if hosts > 1 else []


def tflops(device: torch.device, seconds: float) -> float:
    """Matmul rate over the second half of so many seconds, when clocks have settled."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    begun, done, since = time.perf_counter(), 0, 0.0
    while (now := time.perf_counter()) < begun + seconds or done == 0:
        if not since and now > begun + seconds / 2:
            since, done = now, 0
        for _ in range(10):
            torch.mm(a, b)
        _synchronize(device)
        done += 10
    return done * 2 * size**3 / (time.perf_counter() - (since or begun)) / 1e12


def bandwidths(group: dist.ProcessGroup, device: torch.device, mib: int) -> dict[str, float]:
    """GB/s of an all-reduce and an all-to-all of a buffer: its bytes over the median time."""
    buffer = torch.ones(mib << 18, device=device)  # fp32
    buffer = buffer[: buffer.numel() // group.size() * group.size()]
    received = torch.empty_like(buffer)
    size = buffer.numel() * 4 / 1e9
    return {
        "all_reduce": size / _median_s(lambda: dist.all_reduce(buffer.fill_(1), group=group), group, device),
        "all_to_all": size / _median_s(lambda: dist.all_to_all_single(received, buffer, group=group), group, device),
    }


def _median_s(call: Callable[[], Any], group: dist.ProcessGroup, device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):
        dist.barrier(group)
        _synchronize(device)
        begun = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[REPEATS // 2]  # the first one makes the connections


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tell(message: str) -> None:
    """Say how far the ranks are; rank 0 speaks for all."""
    if os.environ["RANK"] == "0":
        print(f"{PROGRESS}{message}", flush=True)


def measure(seconds: float, mib: int) -> dict[str, Any]:
    """All ranks together: {tflops by rank, inside by host, between by pair of hosts}; hosts by their number."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=300))
    here, each = int(os.environ["CROSS_RANK"]), int(os.environ["LOCAL_SIZE"])
    hosts = dist.get_world_size() // each
    ranks_of = [list(range(host * each, (host + 1) * each)) for host in range(hosts)]
    tell(f"matmuls for {seconds:.0f} s on each of {dist.get_world_size()} ranks")
    measured: dict[str, Any] = {
        "tflops": tflops(device, seconds),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
    if each > 1:
        tell("all_reduce and all_to_all inside each host")
        group = dist.new_group(ranks_of[here], use_local_synchronization=True)
        measured["inside"] = bandwidths(group, device, mib)
        dist.destroy_process_group(group)
    measured["between"] = {}
    done, told, total = 0, 0.0, hosts * (hosts - 1) // 2
    for number, pairs in enumerate(rounds(hosts)):
        if time.monotonic() - told > PAIRS_EVERY_S:
            tell(f"all_reduce and all_to_all between two hosts: {done} of {total} pairs are done")
            told = time.monotonic()
        for first, second in pairs:
            if here in (first, second):
                ranks = ranks_of[first] + ranks_of[second]
                group = dist.new_group(ranks, use_local_synchronization=True, group_desc=f"round {number}")
                measured["between"][f"{first}-{second}"] = bandwidths(group, device, mib)
                dist.destroy_process_group(group)
        dist.barrier()
        done += len(pairs)
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, measured)
    between = {pair: values for of_rank in of_ranks for pair, values in of_rank["between"].items()}
    inside = {host: of_ranks[host * each]["inside"] for host in range(hosts) if each > 1}
    dist.destroy_process_group()
    return {
        "device": of_ranks[0]["device"],
        "tflops": [of_rank["tflops"] for of_rank in of_ranks],
        "inside": inside,
        "between": between,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--burn-seconds", required=True, type=float)
    parser.add_argument("--mib", required=True, type=positive_int)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    measured = measure(args.burn_seconds, args.mib)
    if os.environ["RANK"] == "0":
        write_json(args.output, measured)
    return 0


if __name__ == "__main__":
    leave(main())
