"""A rank knows its host by the name that the launch has for it."""

from __future__ import annotations

import pytest

from recipe.base.ranks import HOSTS, host_name, hosts_variable, located, machine_name


@pytest.fixture
def on(monkeypatch):
    """A function that says what a rank of some hosts calls its own, and the machine's own name where that differs."""

    def names(rank: int | None, hosts: dict[str, int] | None, machine: str) -> tuple[str, str]:
        monkeypatch.setattr("socket.gethostname", lambda: machine)
        for name, value in (("RANK", rank), (HOSTS, hosts and hosts_variable(hosts))):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))
        return host_name(), machine_name()

    return names


@pytest.mark.parametrize(
    ("rank", "hosts", "machine", "names"),
    [
        (0, {"10.0.0.1": 2, "10.0.0.2": 2}, "gpu-1", ("10.0.0.1", "gpu-1")),
        (1, {"10.0.0.1": 2, "10.0.0.2": 2}, "gpu-1", ("10.0.0.1", "gpu-1")),
        (2, {"10.0.0.1": 2, "10.0.0.2": 2}, "gpu-2", ("10.0.0.2", "gpu-2")),
        (3, {"a": 1, "b": 3}, "b", ("b", "")),
        (1, {"a": 1, "b": 3}, "b.cluster.local", ("b", "")),
        (1, {"a": 1, "b.cluster.local": 3}, "B", ("b.cluster.local", "")),
        (1, {"a": 1, "login": 3}, "b", ("login", "b")),
        (0, {"localhost": 2}, "laptop", ("localhost", "laptop")),
        (0, None, "gpu-1", ("gpu-1", "")),  # a bare `deepspeed`
        (None, {"10.0.0.1": 2}, "gpu-1", ("gpu-1", "")),  # no rank
    ],
)
def test_a_host_has_the_name_of_its_allocation(rank, hosts, machine, names, on):
    assert on(rank, hosts, machine) == names


def test_the_machines_name_stands_beside_another():
    assert located("10.0.0.1", "gpu-1") == "10.0.0.1 (machine gpu-1)"
    assert located("gpu-1", "") == "gpu-1"
