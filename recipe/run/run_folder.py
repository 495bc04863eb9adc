"""The folder of a run: what it was started with, and whether it may be started or resumed here."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import recipe
from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.base.settings import RunConfig
from recipe.base.strict import load_json

Resume = Literal["never", "auto"]
# What a resumed run may change without becoming another run.
_FREE_TO_CHANGE = {"logging", "checkpoint", "run_dir"}
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pydantic")


def check_run_folder(run: RunConfig, resume: Resume) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        UserError: the folder holds a run and `resume` is "never", or its run config differs in more than
            logging and checkpoint cadence.
    """
    started = run.run_dir / "run.json"
    if not started.exists():
        return
    if resume == "never":
        raise UserError(
            f"{run.run_dir} already holds a run; add --resume auto to continue it or choose another run_dir"
        )
    before, now = load_json(started)["run_config"], run.model_dump(mode="json")
    changed = sorted(
        key for key in now.keys() | before.keys() if key not in _FREE_TO_CHANGE and before.get(key) != now.get(key)
    )
    if changed:
        raise UserError(
            f"{run.run_dir} holds a run with other settings in {', '.join(changed)}; restore them or choose another run_dir"
        )


def record_start(run: RunConfig, ds_raw: dict[str, Any]) -> None:
    """Write run.json at the first start, and one line of incarnations.jsonl at each."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    start = {
        "time": time.time(),
        "command": sys.argv,
        "code_version": recipe.__version__,
        "packages": {name: version(name) for name in _PACKAGES},
        "run_config": run.model_dump(mode="json"),
        "ds_config": ds_raw,
    }
    if not (run.run_dir / "run.json").exists():
        write_json(run.run_dir / "run.json", start)
    with open(run.run_dir / "incarnations.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps(start) + "\n")


def load_run_folder(folder: str | Path) -> tuple[RunConfig, dict[str, Any]]:
    """The run config and ds_config JSON that a run folder was last started with.

    Raises:
        UserError: not a run folder.
    """
    path = Path(folder) / "incarnations.jsonl"
    if not path.exists():
        raise UserError(f"{folder} holds no run (no incarnations.jsonl); give the run_dir of a training run")
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return RunConfig.model_validate(last["run_config"]), last["ds_config"]
