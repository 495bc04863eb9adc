"""Hostfiles are read strictly, and hosts that failed are left out."""

from __future__ import annotations

import argparse
import re
import socket
from pathlib import Path

import pytest

from launch.cluster import allocation
from launch.cluster.allocation import lost_nodes
from launch.cluster.hosts import HostPool, host_problem, hosts_for, is_this_host, read_hostfile, write_hostfile
from recipe.base.errors import UserError

HOSTS = {"a": 8, "b": 8, "c": 8}


def test_a_hostfile_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# rack 1\na slots=8\n\nb slots=8  # spare\nc   slots=8\n")
    assert read_hostfile(path) == HOSTS
    write_hostfile(path, HOSTS)
    assert read_hostfile(path) == HOSTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 8\n", "line 1: 'a 8' is not 'HOST slots=N'"),
        ("# ours\na slots=eight\n", "line 2: 'a slots=eight' is not 'HOST slots=N'"),
        ("a slots=-1\n", "line 1: 'a slots=-1' is not 'HOST slots=N'"),
        ("a slots=8 b slots=8\n", "line 1: 'a slots=8 b slots=8' is not"),
        ("a slots=8\n\nA slots=4\n", "line 3: A is a duplicate of line 1; remove one"),
        ("a slots=8\nb slots=0\n", "line 2: 'b' has slots=0, so no rank"),
        ("-oProxyCommand=touch${IFS}owned slots=8\n", "line 1: '-oProxyCommand=touch${IFS}owned' is no host name"),
        ("$(id) slots=1\n", "is no host name and no IP address"),
        ("root@a slots=1\n", "a user or a port of a host goes into ~/.ssh/config"),
        (
            "2001:db8::7 slots=1\n",
            "line 1: '2001:db8::7' has a colon, which pdsh reads otherwise; give an IPv6 address a name",
        ),
        ("a slots=1\nssh:b slots=1\n", "line 2: 'ssh:b' has a colon"),
        ("a\x1b[31m slots=1\n", r"line 1: 'a\x1b[31m' is no host name"),
        ("a \x1b[31m\n", r"line 1: 'a \x1b[31m' is not 'HOST slots=N'"),
        ("a\x1b slots=0\n", r"line 1: 'a\x1b' has slots=0"),
        ("a slots=0\nb\n", "has 2 problems:\n  - line 1: 'a' has slots=0"),
        ("\n# none\n", "names no host"),
    ],
)
def test_what_is_no_hostfile_is_refused_by_line_and_reason(text, message, tmp_path):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_hostfile(path)


def test_hostfiles_from_other_editors(tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes("a slots=8\r\nb slots=8\r\nc slots=8\r\n".encode("utf-8-sig"))
    assert read_hostfile(path) == HOSTS
    for encoded in ("a slots=8\n".encode("utf-16"), b"a slots=8  # caf\xe9\n"):
        path.write_bytes(encoded)
        with pytest.raises(UserError, match="is not text in UTF-8; save it as that"):
            read_hostfile(path)
    path.write_bytes("a slots=8\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="line 1: "):
        read_hostfile(path)


@pytest.mark.parametrize(
    "host",
    ["a", "node-01", "GPU_3", "x" * 63, "n1.rack-2.example.org", "3com.org", "10.0.0.7", "::1", "2001:db8::7"],
)
def test_names_and_addresses_are_hosts(host):
    assert host_problem(host) is None


@pytest.mark.parametrize(
    "host",
    ["", "-a", "a-", ".a", "a.", "a..b", "x" * 64, ".".join(["x" * 63] * 5), "a b", "a\n", "a/b", "a:22", "a,b", "n[1-4]", "a;id",
     "`id`", "1.2.3", "256.0.0.1", "010.0.0.1", "12", "fe80::1%eth0", "::g", "\u00e4.de", "%h", "-oProxyCommand=id"],
)  # fmt: skip
def test_other_words_are_not(host):
    assert host_problem(host) is not None


def test_slurms_hosts_are_checked_too(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a,-oProxyCommand=id")
    monkeypatch.setattr(allocation, "_output", lambda *_: "a\n-oProxyCommand=id\n")
    args = argparse.Namespace(gpus_per_node=2, slurm=True, hostfile=None, num_gpus=None)
    with pytest.raises(UserError, match="SLURM_JOB_NODELIST: '-oProxyCommand=id' is no host name"):
        allocation.allocation_of(args, [], Path("unused"))


def test_this_host_is_known_by_its_names_and_addresses():
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "::1", socket.gethostname()):
        assert is_this_host(host) or host == "::1", host  # a machine may be without IPv6
    for host in ("192.0.2.1", "2001:db8::1", "no-such-host.invalid"):  # RFC 5737, RFC 3849, RFC 6761
        assert not is_this_host(host), host


def test_a_missing_hostfile_does_not_mean_one_host(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_spares_take_the_place_of_hosts_that_failed():
    assert hosts_for(HOSTS, 16, set()) == {"a": 8, "b": 8}
    assert hosts_for(HOSTS, 16, {"a"}) == {"b": 8, "c": 8}
    with pytest.raises(UserError, match="the hosts without a, b give 8 ranks, but the ds_config is for 16"):
        hosts_for(HOSTS, 16, {"a", "b"})
    with pytest.raises(UserError, match="give 16 ranks, but the ds_config is for 12"):
        hosts_for(HOSTS, 12, set())


def test_a_host_that_failed_twice_is_left_out():
    pool = HostPool(HOSTS)
    pool.blame("b")
    pool.blame("unknown")
    pool.blame("unknown")
    assert pool.choose(16) == {"a": 8, "b": 8}
    pool.blame("b")
    assert pool.excluded == {"b"}
    assert pool.choose(16) == {"a": 8, "c": 8}


def test_a_rank_is_on_the_host_that_has_its_slot(tmp_path):
    here = allocation.Hosts({"a": 2, "b": 1, "c": 2}, [], tmp_path)
    here.chosen = here.hosts
    assert [here.host_of(rank) for rank in range(6)] == ["a", "a", "b", "c", "c", None]
    for rank in (1, 3, 4, 9):  # the last is none of ours
        here.blame(rank)
    assert here.excluded == {"c"}


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ({"b"}, None),
        (set(), "there is no other host to go on with"),
        ({"a", "b"}, "the hosts without a, b give 8 ranks, but the ds_config is for 16; add a host"),
    ],
)
def test_whether_a_run_can_go_on_without_some_hosts(hosts, problem, tmp_path):
    three = allocation.Hosts(HOSTS, [], tmp_path)
    found = three.problem_without(hosts, 16)
    assert found is None if problem is None else found.startswith(problem)
    assert three.excluded == set()
    assert allocation.ThisHost(8, [], tmp_path).problem_without({"a"}, 8) == "there is no other host to go on with"


def test_slurm_nodes_that_are_down_leaving_or_silent_are_lost():
    message = "a alloc\nb drng\nc idle*\nd down*\ne mix\n"
    assert lost_nodes(message, ["a", "b", "c", "d", "e", "f"]) == ["b", "c", "d", "f"]
