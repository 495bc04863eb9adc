"""What a run had behind it before its own first step: the run that it branched from, the model that it was imported from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recipe.run.records import read_starts

HUB_CACHE = "models--"  # huggingface_hub's folder of a model: models--OWNER--NAME/snapshots/COMMIT


@dataclass(frozen=True)
class Origin:
    """What an exported model states of its past, through all the runs that led to it.

    Args:
        context: the longest sequences that the weights were trained on, tokens.
        base_model: name of the imported model; None where the weights began at random.
        unrecorded: what the run began from, where an earlier version did not record these two of it.
    """

    context: int
    base_model: str | None = None
    unrecorded: str | None = None


def origin_of(run_dir: Path, phase: int = 0) -> Origin:
    """Read the records of a run.

    Args:
        phase: the last one that the weights were trained in.

    Raises:
        UserError: `run_dir` holds no run.
    """
    starts = read_starts(run_dir)
    own = max(_longest(start["run_config"], phase) for start in starts)
    began_from = starts[0].get("began_from")
    if began_from is None:
        return Origin(own)
    if "origin" not in began_from:
        return Origin(own, unrecorded=began_from["from"])
    before = Origin(**began_from["origin"])
    return replace(before, context=max(own, before.context))


def _longest(run: dict[str, Any], phase: int) -> int:
    """The longest sequences of a run's phases up to one, tokens."""
    own, phases = run["data"]["seq_length"], run.get("phases", [])[: phase + 1]
    return max(int(settings["data"].get("seq_length", own)) for settings in phases or [{"data": {}}])


def record_of(origin: Origin) -> dict[str, Any]:
    """What the first start of a run records of what it began from, so that its export needs none of it."""
    return {"origin": asdict(origin)}


def imported(model: Path, context: int) -> Origin:
    """The origin of a run that begins from a model's folder.

    Args:
        context: the longest sequences that the model says it takes, tokens.
    """
    return Origin(context, model_name(model.absolute()))


def model_name(folder: Path) -> str:
    """OWNER/NAME where the folder is of huggingface_hub's cache, else the folder's own name."""
    cached = next((part for part in folder.parts if part.startswith(HUB_CACHE)), None)
    return cached.removeprefix(HUB_CACHE).replace("--", "/", 1) if cached else folder.name
