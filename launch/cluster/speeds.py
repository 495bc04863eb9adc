"""Which hosts are slow beside the others, by what they measured alone and with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.cluster.checks import Facts, median

CPU = "cpu"  # the device of ranks without GPUs
# Of the median.
MATMUL_SHARE, LINK_SHARE, DISK_SHARE = 0.93, 0.8, 0.5
SPREADS = 3.0  # below the median, of what is usual between the hosts
DISK_SPEEDS = {"write_mb_per_s": "writes", "read_mb_per_s": "reads"}
PROGRESS = "preflight progress: "  # begins a line of the ranks that launch/preflight.py tells the user
OPS = ("all_reduce", "all_to_all")


def judge_links(links: Mapping[str, Any], slots: Mapping[str, int]) -> dict[str, list[str]]:
    """What is slow about each host by what its ranks measured: a GPU, links inside, links to all others."""
    slow: dict[str, list[str]] = {}
    for host, sentence in (*_slow_matmuls(links, slots), *_slow_links(links, slots)):
        slow.setdefault(host, []).append(sentence)
    return slow


def _slow_matmuls(links: Mapping[str, Any], slots: Mapping[str, int]) -> list[tuple[str, str]]:
    on_cpu = links.get("device") == CPU
    unit, advice = ("CPU rank", "other work on its host") if on_cpu else ("GPU", "its clocks and heat")
    usual, least = median(links["tflops"]), least_usual(links["tflops"], MATMUL_SHARE)
    rates = iter(links["tflops"])
    of_hosts = [(host, number, next(rates)) for host, count in slots.items() for number in range(count)]
    return [
        (host, f"{unit} {number} multiplies at {rate:.3g} TFLOP/s, {rate / usual:.0%} of the median; look at {advice}")
        for host, number, rate in of_hosts
        if rate < least
    ]


def _slow_links(links: Mapping[str, Any], slots: Mapping[str, int]) -> list[tuple[str, str]]:
    on_cpu = links.get("device") == CPU
    advice = "other work on its host and its network" if on_cpu else "its NICs and cables"
    slow = []
    for op in OPS:
        inside = {host: values[op] for host, values in links["inside"].items()}
        between = {host: median(rates) for host in slots if (rates := rates_of(links, host, op))}
        for where, rate_of in (("inside", inside), ("to the other hosts", between)):
            usual, least = median(list(rate_of.values())), least_usual(list(rate_of.values()), LINK_SHARE)
            slow += [
                (host, f"{op} {where} at {rate:.3g} GB/s, {rate / usual:.0%} of the median; look at {advice}")
                for host, rate in rate_of.items()
                if rate < least
            ]
    return slow


def rates_of(links: Mapping[str, Any], host: str, op: str) -> list[float]:
    """GB/s of a collective between a host and each of the others."""
    return [values[op] for pair, values in links["between"].items() if host in pair.split(" ")]


def best_of(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two measurements of the same ranks as one with the better figure of each: other work on a host only makes one worse."""
    best = {**first, "tflops": [max(pair) for pair in zip(first["tflops"], second["tflops"], strict=True)]}
    for where in ("inside", "between"):
        best[where] = {
            name: {op: max(rate, second[where][name][op]) for op, rate in rates.items()}
            for name, rates in first[where].items()
        }
    return best


def slow_disks(facts: Mapping[str, Facts]) -> dict[str, list[str]]:
    """What is slow about each host's writes and reads in --folder, beside the other hosts'."""
    slow: dict[str, list[str]] = {}
    for name, verb in DISK_SPEEDS.items():
        speeds = [f[name] for f in facts.values()]
        for host, f in facts.items():
            if f[name] < least_usual(speeds, DISK_SHARE):
                sentence = f"{verb} --folder at {f[name]:.0f} MB/s, the others at {median(speeds):.0f}; look at its link to the storage"
                slow.setdefault(host, []).append(sentence)
    return slow


def least_usual(values: list[float], share: float) -> float:
    """A speed below this is not usual: a share of the median, or less where most hosts scatter more than that.

    The scatter is the median distance to the median (times 1.4826 the standard deviation of normal values), which a few
    slow hosts do not widen. Of two values neither is the slow one.
    """
    if len(values) < 3:
        return 0.0
    usual = median(values)
    spread = 1.4826 * median([abs(value - usual) for value in values])
    return min(share * usual, usual - SPREADS * spread)
