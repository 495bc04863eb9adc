"""Hostfiles are read strictly, and hosts that failed are left out."""

from __future__ import annotations

import pytest

from launch.hosts import HostPool, hosts_for, read_hostfile, write_hostfile
from launch.places import lost_nodes
from recipe.base.errors import UserError

HOSTS = {"a": 8, "b": 8, "c": 8}


def test_a_hostfile_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# rack 1\na slots=8\n\nb slots=8  # spare\nc   slots=8\n")
    assert read_hostfile(path) == HOSTS
    write_hostfile(path, HOSTS)
    assert read_hostfile(path) == HOSTS


@pytest.mark.parametrize("text", ["a 8\n", "a slots=8\na slots=8\n", "a slots=eight\n", "\n# none\n"])
def test_what_is_no_hostfile_is_refused(text, tmp_path):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match=r"is not a new 'HOST slots=N'|names no host"):
        read_hostfile(path)


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


def test_slurm_nodes_that_are_down_leaving_or_silent_are_lost():
    said = "a alloc\nb drng\nc idle*\nd down*\ne mix\n"
    assert lost_nodes(said, ["a", "b", "c", "d", "e", "f"]) == ["b", "c", "d", "f"]
