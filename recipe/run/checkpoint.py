"""Checkpoints that are whole or absent, and are verified before they are loaded.

DeepSpeed writes its files into `step_N.partial/`; every rank then flushes and hashes its share of them; rank 0
writes `manifest.json` with sizes, checksums, the topology and the training state, renames the folder to
`step_N/`, and moves `latest` last. All ranks must see one file system.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

import recipe
from recipe.base.errors import UserError
from recipe.base.files import sha256, write_json, write_text
from recipe.base.strict import load_json

SCHEMA, VERSION = "recipe.checkpoint", 1


@dataclass
class TrainState:
    """All that a resumed run needs besides the engine's own state."""

    step: int = 0  # optimizer steps done
    sequences: int = 0  # sequences consumed: the position in the data
    tokens: int = 0  # tokens trained on: the position in the schedule
    mitigations: dict[str, Any] = field(default_factory=dict)  # which remedies hold, and until when

    def advance(self, sequences: int, tokens: int) -> None:
        self.step, self.sequences, self.tokens = self.step + 1, self.sequences + sequences, self.tokens + tokens


def topology(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """What a checkpoint must share with the run that loads it."""
    return {
        "world_size": dist.get_world_size(),
        "autoep_size": engine._config.expert_parallel_config.autoep_size,
        "zero_stage": engine.zero_optimization_stage(),
    }


class CheckpointStore:
    """The checkpoints of one run. `save` and `load` are called by all ranks together."""

    def __init__(self, folder: str | Path, keep_last: int):
        self.folder = Path(folder)
        self.keep_last = keep_last

    def complete(self) -> list[Path]:
        """Committed checkpoints, oldest first."""
        return sorted(
            p.parent for p in self.folder.glob("step_*/manifest.json") if not p.parent.name.endswith(".partial")
        )

    def save(self, engine: deepspeed.DeepSpeedEngine, state: TrainState) -> Path:
        name = f"step_{state.step:08d}"
        partial, final = self.folder / f"{name}.partial", self.folder / name
        if final.exists():
            return final
        if dist.get_rank() == 0 and partial.exists():
            shutil.rmtree(partial)
        dist.barrier()
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        dist.barrier()
        files = _merge(_hash_share(partial, flush=True))
        if dist.get_rank() == 0:
            manifest = {
                "schema": SCHEMA,
                "version": VERSION,
                "code_version": recipe.__version__,
                "topology": topology(engine),
                "train_state": asdict(state),
                "files": files,
            }
            write_json(partial / "manifest.json", manifest)
            for script in ("zero_to_fp32.py", "zero_to_torch.py"):  # of no use under AutoEP; recipe/export.py is
                (self.folder / script).unlink(missing_ok=True)
            os.rename(partial, final)
            write_text(self.folder / "latest", name)
            for old in self.complete()[: -self.keep_last]:
                shutil.rmtree(old)
        dist.barrier()
        return final

    def load(self, engine: deepspeed.DeepSpeedEngine, path: Path) -> TrainState:
        """Verify every file of a checkpoint, then load it.

        Raises:
            UserError: on all ranks alike, when it is damaged or of another topology.
        """
        manifest = load_json(path / "manifest.json")
        if manifest.get("schema") != SCHEMA or manifest.get("version") != VERSION:
            raise UserError(f"{path / 'manifest.json'} is not of {SCHEMA} version {VERSION}")
        here = topology(engine)
        if manifest["topology"] != here:
            raise UserError(f"{path} was written with {manifest['topology']} but this run has {here}; launch the same")
        found = _merge(_hash_share(path, flush=False, names=manifest["files"]))
        for file, facts in manifest["files"].items():
            if found.get(file) != facts:
                state = "is missing" if found.get(file) is None else "does not have its checksum"
                raise UserError(f"{path / file} {state}; resume from an older checkpoint by moving {path} away")
        loaded, _ = engine.load_checkpoint(str(self.folder), tag=path.name, load_lr_scheduler_states=False)
        assert loaded is not None, f"DeepSpeed found no checkpoint in {path}"
        return TrainState(**manifest["train_state"])


def _hash_share(folder: Path, *, flush: bool, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Size and SHA-256 of this rank's share of the files: every world-size-th one."""
    if names is None:
        names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    facts: dict[str, Any] = {}
    for name in sorted(names)[dist.get_rank() :: dist.get_world_size()]:
        path = folder / name
        if not path.exists():
            facts[name] = None
            continue
        if flush:
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        facts[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return facts


def _merge(share: dict[str, Any]) -> dict[str, Any]:
    gathered: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, share)
    return dict(sorted(item for part in gathered for item in part.items()))
