"""What happened in a run, for people: which events are faults, which follow each other as one, and each in words."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from recipe.base.tables import as_float, duration

# Ordinary in the life of a run.
ORDINARY = {"started", "finished", "checkpoint", "checkpoint_removed", "stopped", "ended"}
# Worth knowing, and no fault.
NOTES = {"imported", "branched", "phase", "branch_left", "checkpoint_unmarked", "average_begun", "tracker"}
SERIOUS = {
    "attempt_ended", "rewind", "checkpoint_damaged", "checkpoint_suspect", "checkpoint_failed", "data_skipped", "corruption",
}  # fmt: skip

TITLES = {
    "started": "Training began",
    "finished": "Training finished",
    "stopped": "Stopped on request",
    "attempt_ended": "Interrupted",
    "checkpoint": "Checkpoint saved",
    "checkpoint_failed": "Checkpoint not saved",
    "checkpoint_removed": "Old checkpoint removed",
    "checkpoint_damaged": "Damaged checkpoint",
    "checkpoint_rewound": "Checkpoint of a spike",
    "checkpoint_suspect": "Suspect checkpoint",
    "checkpoint_unmarked": "Checkpoint no longer kept for ever",
    "average_begun": "Moving average began anew",
    "branch_left": "Went on from an older checkpoint",
    "imported": "Began from a trained model",
    "branched": "Began from another run",
    "phase": "Next phase",
    "kept_lowered": "Less memory for kept results",
    "step_skipped": "Step skipped",
    "rewind": "Went back before a spike",
    "corruption": "Wrong results of a rank",
    "straggler": "Slow rank",
    "data_skipped": "Damaged data",
    "fired": "Routing remedy began",
    "ended": "Routing remedy ended",
    "tracker": "Tracker",
}

# What happened, what was done, and what it cost, where no field of the event tells more.
_MEANINGS = {
    "started": "The ranks began to train.",
    "finished": "The run trained all of its planned tokens.",
    "stopped": "The run saved a checkpoint and stopped. Start it again to go on.",
    "checkpoint": "The state of the run is on disk. A restart goes on from here.",
    "checkpoint_failed": "A checkpoint could not be saved. Training went on. A failure before the next checkpoint costs more steps.",
    "checkpoint_removed": "An old checkpoint was removed to make room for a new one.",
    "checkpoint_damaged": "A checkpoint lacks a file, or a file has another checksum. It was set aside, and an older one is used.",
    "checkpoint_rewound": "A checkpoint was saved during a spike of the loss. It was set aside, and an older one is used.",
    "checkpoint_suspect": "A checkpoint was saved while a rank computed wrong results. It was set aside, and an older one is used.",
    "checkpoint_unmarked": "The schedule changed, and this checkpoint has no special meaning any more. It is removed like others.",
    "average_begun": "The checkpoint that the run went on from has no moving average of the weights. One began with its weights.",
    "branch_left": "The run went on from an older checkpoint. Younger ones were set aside.",
    "imported": "The run began with the weights of a trained model.",
    "branched": "The run began with a checkpoint of another run.",
    "phase": "A phase of the run began: from here on its batch, data, sequence length and learning rate hold.",
    "kept_lowered": "A step ran out of memory. From this start on recomputed layers keep fewer results, and a step takes a little longer.",
    "rewind": "The loss stayed too high. The run went back to the last checkpoint before the spike and leaves out the data of the spike.",
    "corruption": "Ranks computed different results from the same input. Checkpoints since the last good check were set aside.",
    "data_skipped": "Blocks of the training data are damaged on disk. Their sequences were left out, and training went on.",
    "ended": "The routing settings are again those of the run config.",
    "tracker": "A tracker of logging.trackers told where its numbers are, or that it failed and is tried again. Training went on, and all numbers are in metrics.jsonl.",
}  # fmt: skip

# How an attempt ended, by the kind of its failure: of a rank, of the whole run.
_ENDS = {
    "killed": ("was killed", "A process of the run was killed"),
    "hang": ("stopped making progress", "The ranks waited for each other without progress"),
    "out_of_memory": ("ran out of memory", "A rank ran out of memory"),
    "error": ("failed with an error", "The run failed with an error"),
    "user_error": ("refused the settings or files of the run", "The settings or files of the run were refused"),
    "corruption": ("computed wrong results", "A rank computed wrong results"),
    "peer_lost": ("lost the connection to another rank", "The ranks lost the connection to each other"),
    "rewind": ("ended, to go back before a spike", "The run ended, to go back before a spike of the loss"),
    "stopped": ("stopped", "The run was stopped"),
    "unknown": ("ended for an unknown reason", "The run ended for an unknown reason"),
}
_SKIPS = {
    "nonfinite": "The loss or the gradient was not a finite number.",
    "spike": "The loss or the gradient norm was far above its recent values.",
    "empty": "No token of the batch has a loss.",
}
_REMEDIES = {
    "collapse": "Experts of a layer got almost no tokens.",
    "overload": "An expert got far more tokens than the others of its layer.",
    "logit_growth": "The logits of a router grew too large.",
}


@dataclass(frozen=True)
class Happened:
    """Events of one kind in a row, as one."""

    kind: str
    events: list[dict[str, Any]]
    resumed: dict[str, Any] | None = field(default=None, compare=False)  # the start after an interruption

    @property
    def first(self) -> dict[str, Any]:
        return self.events[0]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def count(self) -> int:
        return len(self.events)

    @property
    def serious(self) -> bool:
        """A fault; what is not is a warning or a note."""
        return self.kind in SERIOUS

    @property
    def style(self) -> str:
        """Of the page: a fault, a warning, a note."""
        return "bad" if self.serious else "soft" if self.kind in NOTES else "warn"

    @property
    def title(self) -> str:
        return TITLES.get(self.kind, self.kind.replace("_", " "))

    @property
    def sentences(self) -> str:
        """What happened, to whom, what was done about it, and what it cost."""
        tell = _TELLERS.get(self.kind)
        return tell(self) if tell else _MEANINGS.get(self.kind, "")


def faults(events: list[dict[str, Any]]) -> list[Happened]:
    """All that is not ordinary and no mere note, oldest first; a kind that repeats without another in between is one."""
    return happened(events, ORDINARY | NOTES)


def happened(events: list[dict[str, Any]], left_out: Collection[str] = frozenset(ORDINARY)) -> list[Happened]:
    """Faults, warnings and notes, as `faults` has them; of interruptions, those of the same cause are one."""
    groups: list[Happened] = []
    waiting = False  # the last interruption for its start
    for event in events:
        kind = event["event"]
        if kind == "started" and waiting:
            groups[-1], waiting = Happened(groups[-1].kind, groups[-1].events, event), False
        asked = kind == "attempt_ended" and event["kind"] == "stopped" and event["code"] == 0
        if kind in left_out or asked:
            continue
        waiting = kind == "attempt_ended"
        if groups and _cause(groups[-1].last) == _cause(event):
            groups[-1] = Happened(kind, [*groups[-1].events, event])
        else:
            groups.append(Happened(kind, [event]))
    return groups


def _cause(event: dict[str, Any]) -> tuple[Any, ...]:
    if event["event"] != "attempt_ended":
        return (event["event"],)
    return (event["event"], event.get("kind"), event.get("rank"), event.get("host"))


def _interrupted(group: Happened) -> str:
    event = group.last
    rank, host = event.get("rank"), event.get("host")
    of_rank, of_run = _ENDS.get(str(event.get("kind")), _ENDS["unknown"])
    where = f" on host {host}" if host else ""
    parts = [f"{of_run}{where}." if rank is None else f"Rank {rank}{where} {of_rank}."]
    if group.resumed is not None:
        parts.append(f"The run was started again and went on after step {group.resumed['step']:,}.")
    else:
        parts.append("The run was not started again since.")
    if excluded := event.get("excluded_hosts"):
        parts.append(f"It leaves out {'host' if len(excluded) == 1 else 'hosts'} {', '.join(map(str, excluded))}.")
    return " ".join([*parts, *_cost(group.events)])


def _cost(events: list[dict[str, Any]]) -> list[str]:
    steps = sum(as_float(event.get("lost_steps") or 0) for event in events)
    seconds = sum(as_float(event.get("lost_s") or 0) for event in events)
    if not steps and not seconds:
        return ["No step was lost."]
    lost = f"{steps:,.0f} step{'s' if steps != 1 else ''}, {duration(seconds)} of work" if steps else duration(seconds)
    return [f"Cost: {lost} since the last checkpoint."]


def _skipped(group: Happened) -> str:
    reason = _SKIPS.get(str(group.last.get("kind")), "The step could not be trusted.")
    cost = "Cost: the update of this step." if group.count == 1 else f"Cost: the updates of {group.count:,} steps."
    return f"{reason} The weights were left as they were, and training went on. {cost}"


def _slow(group: Happened) -> str:
    event = group.last
    if "slowest_rank" not in event:
        return "A rank needs more time than the others, which wait for it. Look at its host."
    return (
        f"Rank {event['slowest_rank']} on host {event.get('slowest_host')} needed {as_float(event.get('slowest_over_median', 1)):.2f} "
        "times as long as the median rank, and all ranks wait for the slowest. Look at this host."
    )


def _remedy(group: Happened) -> str:
    reason = _REMEDIES.get(str(group.last.get("detector")), "The load of the experts was not healthy.")
    return f"{reason} The remedy of the run config was applied."


_TELLERS: dict[str, Callable[[Happened], str]] = {
    "attempt_ended": _interrupted,
    "step_skipped": _skipped,
    "straggler": _slow,
    "fired": _remedy,
}


def state_of(events: list[dict[str, Any]]) -> str:
    """How a run stands by its last word."""
    words = [e for e in events if e["event"] in ("started", "finished", "stopped", "attempt_ended", "rewind")]
    if not words:
        return "starting"
    last = words[-1]
    return {"started": "running", "finished": "finished", "stopped": "stopped"}.get(
        last["event"], f"ended: {last['message']}"
    )
