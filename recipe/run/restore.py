"""A run folder's engine with the weights of one of its checkpoints, for evaluation and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed

from recipe.base.ds_config import DsConfig
from recipe.base.errors import UserError
from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.ranks import required_world_size
from recipe.base.settings import RunConfig
from recipe.base.strict import strict_model
from recipe.model import RecipeMoeConfig
from recipe.run.checkpoint import CheckpointStore, TrainState
from recipe.run.engine import build_engine, check_attention
from recipe.run.run_folder import load_run_folder


class RestorableRun:
    """A run folder and the checkpoint chosen from it; `restore` builds the engine, inside a session.

    Raises:
        UserError: from the constructor, before a process group exists: no run, no such checkpoint, or a
            number of ranks other than the run's.
    """

    def __init__(self, folder: Path, checkpoint: str | None):
        self.run: RunConfig
        self.ds_raw: dict[str, Any]
        self.run, self.ds_raw = load_run_folder(folder)
        check_attention(self.run.compute)
        self.shape: ModelShape = load_model_shape(self.run.model)
        self._store = CheckpointStore(folder / "checkpoints", self.run.checkpoint.keep_last)
        self._path = self._choose(folder, checkpoint)
        ranks = strict_model(DsConfig, self.ds_raw, f"ds_config of {folder}").world_size
        launched = required_world_size()
        if launched != ranks:
            raise UserError(f"{folder} was trained on {ranks} ranks but {launched} were launched; launch {ranks}")

    def restore(self) -> tuple[deepspeed.DeepSpeedEngine, TrainState]:
        engine = build_engine(
            RecipeMoeConfig.from_shape(self.shape),
            self.ds_raw,
            seed=self.run.seed,
            optimizer=self.run.optimizer,
            compute=self.run.compute,
        )
        state = self._store.load(engine, self._path)
        engine.eval()
        return engine, state

    def _choose(self, folder: Path, name: str | None) -> Path:
        complete = {path.name: path for path in self._store.complete()}
        if not complete:
            raise UserError(f"{folder} has no complete checkpoint yet; train on")
        if name is not None and name not in complete:
            raise UserError(f"{folder} has no checkpoint '{name}'; it has {', '.join(complete)}")
        return complete[name] if name else list(complete.values())[-1]
