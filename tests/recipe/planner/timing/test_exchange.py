"""What is exposed of exchanges, against a simulation of the two streams event by event."""

from __future__ import annotations

import random

import pytest

from recipe.planner.timing.exchange import ExchangePass, overlap


def simulated_end(events: list[tuple[str, str, float]]) -> float:
    """When both streams are done. The host issues events in order: a kernel runs after those before it, an exchange after
    the kernels and exchanges before it, and a wait lets no later kernel run before its exchange has ended."""
    kernels = exchanges = 0.0
    ended: dict[str, float] = {}
    for kind, name, seconds in events:
        if kind == "run":
            kernels += seconds
        elif kind == "start":
            exchanges = ended[name] = max(exchanges, kernels) + seconds
        else:
            kernels = max(kernels, ended[name])
    return max(kernels, exchanges)


def forward_events(parts: int, seconds: dict[str, float]) -> list[tuple[str, str, float]]:
    """Dispatch of all parts, shared experts, each part's experts, the way home of all parts."""
    events = []
    for part in range(parts):
        events += [("run", f"rows {part}", seconds["rows"]), ("start", f"dispatch {part}", seconds["dispatch"])]
    events.append(("run", "shared", seconds["shared"]))
    for part in range(parts):
        events += [("wait", f"dispatch {part}", seconds["dispatch"]), ("run", f"experts {part}", seconds["experts"])]
        events.append(("start", f"combine {part}", seconds["combine"]))
    for part in range(parts):
        events += [("wait", f"combine {part}", seconds["combine"]), ("run", f"sum {part}", seconds["sum"])]
    return events


def backward_events(parts: int, seconds: dict[str, float]) -> list[tuple[str, str, float]]:
    """Autograd's order: the forward pass reversed, where the wait for an exchange starts the one of its gradients."""
    mirrored = {"run": "run", "start": "wait", "wait": "start"}
    return [(mirrored[kind], name, s) for kind, name, s in reversed(forward_events(parts, seconds))]


NAMES = ("rows", "dispatch", "shared", "experts", "combine", "sum")


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_schedule_ends_when_the_simulated_streams_do(parts):
    chance = random.Random(parts)
    for _ in range(200):
        s = {name: chance.choice((0.0, 0.1, 1.0)) * chance.random() for name in NAMES}
        forward = ExchangePass(s["rows"], s["dispatch"], s["experts"], s["combine"], s["sum"], s["shared"])
        backward = ExchangePass(s["sum"], s["combine"], s["experts"], s["dispatch"], s["rows"], s["shared"], False)
        computation = parts * (s["rows"] + s["experts"] + s["sum"]) + s["shared"]
        for one, events in ((forward, forward_events(parts, s)), (backward, backward_events(parts, s))):
            found = overlap(one, parts)
            assert computation + found.exposed_s == pytest.approx(simulated_end(events))
            assert found.exposed_s + found.hidden_s == pytest.approx(parts * (s["dispatch"] + s["combine"]))
            assert min(found.exposed_s, found.hidden_s) >= -1e-12


def test_an_undivided_layer_has_only_its_shared_experts_beside_an_exchange():
    one = ExchangePass(1.0, 3.0, 10.0, 3.0, 1.0, beside_s=2.0)
    assert overlap(one, 1).exposed_s == pytest.approx(3.0 - 2.0 + 3.0)
    alone = ExchangePass(1.0, 3.0, 10.0, 3.0, 1.0)
    assert overlap(alone, 1).exposed_s == pytest.approx(6.0)


def test_two_halves_hide_what_lies_between_them():
    halves = ExchangePass(0.0, 1.5, 5.0, 1.5)
    assert overlap(halves, 2).exposed_s == pytest.approx(1.5 + 1.5)
