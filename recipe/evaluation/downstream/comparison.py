"""Two checkpoints compared item by item: the items of one are kept in a file, and the other's are set against them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipe.base.errors import UserError
from recipe.evaluation.downstream.estimates import Score, difference
from recipe.evaluation.downstream.gold import Items
from recipe.run.records import read_record, write_record

ARRAYS = ("gold_N", "bits_N", "bytes_N", "correct_N")


def write_items(path: Path, items: Mapping[str, Items]) -> None:
    """Write the items of all tasks as JSON."""
    write_record(path, {"items": {task: _as_json(of) for task, of in items.items()}})


def read_items(path: Path) -> dict[str, Items]:
    """What `write_items` wrote.

    Raises:
        UserError: no such file, or another one.
    """
    record = read_record(path)
    if record is None or "items" not in record:
        raise UserError(f"--compare {path} is no file that --items of this command wrote; give one")
    return {task: _from_json(of) for task, of in record["items"].items()}


def changes(now: Mapping[str, Items], before: Mapping[str, Items]) -> dict[str, dict[str, Score]]:
    """By task and metric, now minus before with the standard error of the paired items.

    Raises:
        UserError: a task of both has other items now.
    """
    found = {}
    for task in [task for task in now if task in before]:
        if now[task].keys != before[task].keys:
            raise UserError(
                f"{task} has other items than in the file of --compare; score the same --limit of the same dataset"
            )
        earlier = before[task].estimates()
        found[task] = {
            metric: difference(estimate, earlier[metric], paired=True)
            for metric, estimate in now[task].estimates().items()
            if metric in earlier
        }
    return found


def _as_json(items: Items) -> dict[str, Any]:
    arrays = {name: getattr(items, name) for name in ARRAYS}
    lists = {name: None if array is None else array.tolist() for name, array in arrays.items()}
    return {"keys": list(items.keys), "no_gold": items.no_gold, **lists}


def _from_json(values: Mapping[str, Any]) -> Items:
    arrays = {name: None if values[name] is None else np.array(values[name]) for name in ARRAYS}
    return Items(tuple(values["keys"]), **arrays, no_gold=values["no_gold"])
