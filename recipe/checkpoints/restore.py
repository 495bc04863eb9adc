"""A run folder's engine with the weights of one of its checkpoints, for evaluation and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed

from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError
from recipe.base.model_shape import ModelShape
from recipe.base.ranks import is_first_rank, required_world_size
from recipe.base.settings import RunConfig
from recipe.base.strict import strict_model
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.data.token_folder import TokenFolder, check_vocabulary, tokenizer_identity
from recipe.engine.build import build_engine, check_compute
from recipe.model import RecipeMoeConfig
from recipe.run.checkpoint_files import find, read_manifest
from recipe.run.folder import load_run_folder
from recipe.run.identity import Identity, check_identity, data_identity
from recipe.run.records import recorded_run_config


class RestorableRun:
    """A run folder and the checkpoint chosen from it; `restore` builds the engine, inside a session.

    Args:
        checkpoint: its name; None: the newest.
        ds_path: a ds_config for other ranks than the run's, once the checkpoint is resharded.

    Raises:
        UserError: from the constructor, before a process group exists: no run, no such checkpoint, or a
            ds_config that does not fit the model or the ranks launched.
    """

    def __init__(self, folder: Path, checkpoint: str | None, ds_path: Path | None = None):
        self.run: RunConfig
        self.ds_raw: dict[str, Any]
        self.run, _ = load_run_folder(folder)
        # Batches of evaluation have many sizes, each of which would be compiled.
        self._compute = self.run.compute.model_copy(update={"compile": False})
        check_compute(self._compute)
        if self.run.run_dir != folder.absolute() and is_first_rank():
            print(
                f"note: {folder} is not where its run was started ({self.run.run_dir}): moved, or a copy; its tokenizer is read "
                f"from {self.run.tokenizer}, its tokens from {self.run.data.tokens}",
                flush=True,
            )
        self._store = CheckpointStore(folder / "checkpoints", self.run.checkpoint)
        path = find(folder / "checkpoints", checkpoint)
        manifest = read_manifest(path)
        self._name, self._identity, self.ds_raw = path.name, manifest["identity"], manifest["ds_config"]
        self.train_state = TrainState(**manifest["train_state"])
        self.routing = recorded_run_config(manifest).routing  # that the checkpoint was saved with
        # As it was trained, whatever has become of the files that the run was started with.
        self.shape = strict_model(ModelShape, self._identity["model"], path)
        tokenizer = tokenizer_identity(self.run.tokenizer)
        self._check("tokenizer", tokenizer, "restore the tokenizer")
        check_vocabulary(tokenizer["vocab_size"], self.shape.vocab_size)  # which an older version did not
        launched = required_world_size()
        if ds_path is None:
            ranks = strict_model(DsConfig, self.ds_raw, f"ds_config of {path}").world_size
            if launched != ranks:
                raise UserError(
                    f"{path} was trained on {ranks} ranks but {launched} were launched; launch {ranks}, or give a "
                    f"--deepspeed_config for {launched} and reshard the checkpoint with launch/reshard.py"
                )
        else:
            ds, self.ds_raw = load_ds_config(ds_path)
            if found := ds.problems_with(self.shape, launched):
                raise ConfigError(f"{ds_path} with {self.run.model}", found)

    def tokens(self, remedy: str) -> TokenFolder:
        """The token folder of the run.

        Args:
            remedy: what to do where it is not what the checkpoint was trained on.

        Raises:
            UserError: it is not there, or not what it was.
        """
        tokens = TokenFolder(self.run.data.tokens)
        self._check("data", data_identity(tokens), remedy)
        return tokens

    def _check(self, part: str, current: Identity, remedy: str) -> None:
        check_identity(self._identity, {part: current}, self._store.folder / self._name, remedy)

    def restore(self) -> tuple[deepspeed.DeepSpeedEngine, TrainState]:
        engine = build_engine(
            RecipeMoeConfig.from_shape(self.shape),
            self.ds_raw,
            seed=self.run.seed,
            optimizer=self.run.optimizer,
            compute=self._compute,
        )
        path = self._store.choose(self._name, fall_back=False)
        assert path is not None
        state = self._store.load(engine, path)
        engine.eval()
        return engine, state
