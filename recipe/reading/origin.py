"""What a run had behind it before its own first step: the run that it branched from, the model that it was imported from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipe.base.run_records import read_starts
from recipe.base.strict import load_json

HUB_CACHE = "models--"  # huggingface_hub's folder of a model: models--OWNER--NAME/snapshots/COMMIT


@dataclass(frozen=True)
class Origin:
    """What an exported model states of its past, through all the runs that led to it.

    Args:
        context: the longest sequences that the weights were trained on, tokens.
        base_model: name of the imported model; None where the weights began at random.
        missing: a run or a model on the way that is not where it was, so that its context is unknown.
    """

    context: int
    base_model: str | None = None
    missing: Path | None = None


def origin_of(run_dir: Path) -> Origin:
    """Read the records of a run, and of those before it.

    Raises:
        UserError: `run_dir` holds no run.
    """
    starts = read_starts(run_dir)
    own = max(int(start["run_config"]["data"]["seq_length"]) for start in starts)
    began_from = starts[0].get("began_from")
    if began_from is None:
        return Origin(own)
    before = _branched(began_from) if "checkpoint" in began_from else _imported(began_from)
    return replace(before, context=max(own, before.context))


def _branched(began_from: dict[str, Any]) -> Origin:
    source = Path(began_from["from"])
    return origin_of(source) if (source / "incarnations.jsonl").exists() else Origin(0, missing=source)


def _imported(began_from: dict[str, Any]) -> Origin:
    folder = Path(began_from["from"])
    name = model_name(folder)
    if not (folder / "config.json").exists():
        return Origin(0, name, missing=folder)
    return Origin(int(load_json(folder / "config.json").get("max_position_embeddings", 0)), name)


def model_name(folder: Path) -> str:
    """OWNER/NAME where the folder is of huggingface_hub's cache, else the folder's own name."""
    cached = next((part for part in folder.parts if part.startswith(HUB_CACHE)), None)
    return cached.removeprefix(HUB_CACHE).replace("--", "/", 1) if cached else folder.name
