"""What the supervisor says while a job runs: what it starts and where, why it ended, and what comes next."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from launch.cluster.decision import Decision
from recipe.base.tables import duration

NAMED_HOSTS = 8


def hosts_of(hosts: Collection[str]) -> str:
    """Such as `2 hosts (a, b)`; of many the first."""
    names = ", ".join(list(hosts)[:NAMED_HOSTS])
    more = f" and {len(hosts) - NAMED_HOSTS} more" if len(hosts) > NAMED_HOSTS else ""
    return f"{len(hosts)} host{'s' if len(hosts) != 1 else ''} ({names}{more})"


def checkpoint_of(step: int) -> str:
    return f"the checkpoint of step {step:,}" if step else "the beginning, since there is no checkpoint"


def starting(attempt: int, ranks: int, hosts: Mapping[str, int], newest_step: int) -> str:
    return f"attempt {attempt} starts {ranks} ranks on {hosts_of(hosts)}, from {checkpoint_of(newest_step)}"


def ended(attempt: int, code: int, message: str, reached: int, newest_step: int) -> str:
    """Why an attempt ended, and how much of it is to be done again."""
    lost = max(0, reached - newest_step)
    where = f" at step {reached:,}" if reached else ""
    again = f"; {lost:,} steps after the checkpoint of step {newest_step:,} are lost" if lost else ""
    return f"attempt {attempt} ended{where} with exit code {code}: {message}{again}"


def next_start(
    attempt: int, decision: Decision, newest_step: int, blamed: str | None, excluded: Collection[str]
) -> list[str]:
    """What follows the end of an attempt, a sentence each."""
    if decision.give_up is not None:
        return ["no other attempt is started"]
    sentences = []
    if decision.step_down:
        sentences.append("the next attempt has half the micro-batch and twice the accumulation (--step-down-on-oom)")
    if decision.kept_gib is not None:
        sentences.append(
            f"the next attempt keeps at most {decision.kept_gib:.4g} GiB of recomputed layers' results (recipe.kept_gib)"
        )
    if blamed is not None and blamed in excluded:
        sentences.append(f"host {blamed} is left out from now on, since it failed twice")
    elif blamed is not None:
        sentences.append(f"host {blamed} is left out when it fails once more")
    if decision.leave_out:
        sentences.append(
            f"left out from now on, since they compute other bits: {', '.join(sorted(decision.leave_out))}"
        )
    when = f"in {duration(decision.backoff_s)}" if decision.backoff_s else "now"
    return [*sentences, f"attempt {attempt + 1} starts {when}, from {checkpoint_of(newest_step)}"]


def stopped(newest_step: int) -> str:
    return f"stopped as asked, before the end of the schedule; the same command continues it from {checkpoint_of(newest_step)}"
