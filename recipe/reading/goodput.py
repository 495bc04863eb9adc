"""Where the hours of a run went, from its first start to its last word."""

from __future__ import annotations

from typing import Any

import numpy as np

from recipe.reading.history import History

# In the order in which a report shows them; the first is what is paid for.
PARTS = ("training", "data wait", "checkpoint", "evaluation", "lost steps", "starting", "down")
_OF_PHASES = {"data_wait": "data wait", "checkpoint": "checkpoint", "evaluation": "evaluation"}


def goodput(starts: list[dict[str, Any]], events: list[dict[str, Any]], history: History) -> dict[str, float]:
    """Seconds of each of PARTS; they add up to the whole.

    Starting is from a start to its first step, lost steps are those that a fault undid, down is between two attempts.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    logged = np.sort(np.concatenate([history["time"], *(stretch["time"] for stretch in history.lost)]))
    spoken = np.sort([*logged, *(e["time"] for e in events)])
    begins = [start["time"] for start in starts]
    for number, begin in enumerate(begins, start=1):
        until = begins[number] if number < len(begins) else np.inf
        of_attempt = [e for e in events if e["attempt"] == number]
        ended = [e for e in of_attempt if e["event"] == "attempt_ended"]
        words = spoken[(spoken >= begin) & (spoken < until)]
        end = ended[-1]["time"] if ended else float(words[-1]) if len(words) else begin
        steps = logged[(logged >= begin) & (logged < until)]
        started = [e["time"] for e in of_attempt if e["event"] == "started"]
        trains_from = started[-1] if started else end
        lost = min(sum(e["lost_s"] for e in ended), end - trains_from) if len(steps) else 0.0
        spent["starting"] += trains_from - begin
        spent["lost steps"] += lost
        spent["training"] += end - trains_from - lost
        if until < np.inf:
            spent["down"] += until - end
    _split_training(spent, history)
    return spent


def _split_training(spent: dict[str, float], history: History) -> None:
    """What of the training was waiting for data, checkpoints and evaluation, by the shares of the logged steps."""
    phases = history.under("phase_s")
    whole = sum(float(np.nansum(values)) for values in phases.values())
    if whole == 0:
        return
    training = spent["training"]
    for phase, part in _OF_PHASES.items():
        if phase in phases:
            spent[part] = training * float(np.nansum(phases[phase])) / whole
            spent["training"] -= spent[part]
