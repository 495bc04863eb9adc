"""Collectives wait longer than the watchdog."""

from __future__ import annotations

import pytest

from recipe.base.errors import UserError
from recipe.base.settings import Watch
from recipe.run.timeouts import group_timeout_s


@pytest.mark.parametrize("watch", [Watch(), Watch(start_s=60, no_progress_s=7200), Watch(heartbeat_s=600)])
def test_groups_wait_until_the_watchdog_has_spoken(watch):
    assert group_timeout_s(watch, {}) > max(watch.start_s, watch.no_progress_s) + 4 * watch.heartbeat_s


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"DEEPSPEED_TIMEOUT": "10"}, "DEEPSPEED_TIMEOUT=10 ends a hung job before watch.start_s .* set it to 61 or more"),
        ({"DEEPSPEED_TIMEOUT": "60"}, "set it to 61 or more"),
        ({"DEEPSPEED_TIMEOUT": "half an hour"}, "is not a whole number of minutes"),
        ({"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "480"}, "set it to 3650 or more"),
        ({"DEEPSPEED_TIMEOUT": "90", "TORCH_NCCL_NONBLOCKING_TIMEOUT": "1800"}, "TORCH_NCCL_NONBLOCKING_TIMEOUT=1800"),
    ],
)  # fmt: skip
def test_an_environment_that_ends_a_hung_job_earlier_is_refused(environment, sentence):
    with pytest.raises(UserError, match=sentence):
        group_timeout_s(Watch(), environment)


def test_the_longer_limit_of_the_environment_is_taken_and_what_is_named_is_the_longer_wait():
    assert group_timeout_s(Watch(), {"DEEPSPEED_TIMEOUT": "90", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "4000"}) == 5400
    with pytest.raises(UserError, match=r"before watch.no_progress_s \(900 s\)"):
        group_timeout_s(Watch(start_s=60), {"DEEPSPEED_TIMEOUT": "10"})
