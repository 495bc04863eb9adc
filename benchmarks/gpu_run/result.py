"""The file of what a GPU has shown: written anew, whole, after each finding; and where results lie that are committed."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
COMMITTED = RESULTS / "gpu"
FORMAT = 1
# Of the machine and the command, as the calibration is told them.
FACTS = ("date", "device", "gpus", "memory_gib", "free_gib", "capability", "driver", "cuda", "nccl", "packages", "python",
         "commit", "dirty", "command", "small")  # fmt: skip
# What is found; at the beginning nothing.
PARTS: dict[str, Any] = {"right": [], "kernels": [], "train_step": None, "calibration": None, "unfinished": []}


class Result:
    """A result that is being found.

    `path` has its JSON. `folder`, with the same name, has what the children write and print, `calibration_path` the
    calibration.
    """

    def __init__(self, path: Path, values: dict[str, Any]):
        self.path, self.values = path, values

    @property
    def folder(self) -> Path:
        return self.path.with_suffix("")

    @property
    def calibration_path(self) -> Path:
        return self.path.with_suffix(".calibration.json")

    def write(self) -> None:
        from recipe.base.files import write_json  # its package may be among the wheels

        write_json(self.path, self.values)

    def write_calibration(self, content: dict[str, Any]) -> None:
        from recipe.base.files import write_json

        write_json(self.calibration_path, content)


def new_result(output: Path, facts: dict[str, Any], budget_s: float) -> Result:
    """A result under a name that no other one in the folder has: the GPU's and the date's, from the second on a number's."""
    output.mkdir(parents=True, exist_ok=True)
    small = "small-" if facts["small"] else ""
    name = f"{small}{re.sub(r'[^a-z0-9]+', '-', facts['device'].lower()).strip('-')}_{facts['date']}"
    for number in range(1, 1_000):
        path = output / f"{name}{'' if number == 1 else f'_{number}'}.json"
        try:
            path.with_suffix("").mkdir()  # its making is the claim: of two commands one gets it
        except FileExistsError:
            continue
        if not path.exists():
            break
    else:
        raise UserError(f"--output {output} holds a thousand results of {name}; choose another folder")
    values = {
        "format": FORMAT,
        **{key: facts[key] for key in FACTS},
        "budget_s": budget_s,
        "spent_s": {},
        **deepcopy(PARTS),
    }
    return Result(path, values)


def load_result(path: Path) -> Result:
    """Raises UserError if the file is not a result."""
    from recipe.base.strict import load_json

    if path.is_dir():
        raise UserError(f"{path} is a folder; give a result's file in it")
    values = load_json(path)
    if not isinstance(values, dict) or not {"format", *FACTS, *PARTS} <= values.keys():
        raise UserError(f"{path} is no result of benchmarks/gpu.py; give a JSON that it has written")
    if values["format"] != FORMAT:
        raise UserError(f"{path} has format {values['format']}, and this version reads {FORMAT}; measure again")
    return Result(path, values)


def results_in(folder: Path) -> list[Result]:
    """All results of a folder, oldest first; calibrations lie beside them."""
    files = [file for file in folder.glob("*.json") if not file.name.endswith(".calibration.json")]
    return sorted((load_result(file) for file in files), key=lambda result: (result.values["date"], result.path.name))
