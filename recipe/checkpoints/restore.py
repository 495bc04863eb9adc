"""A run folder's engine with the weights of one of its checkpoints, for evaluation and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed

from recipe.base.ds_config import DsConfig, load_ds_config
from recipe.base.errors import ConfigError, UserError
from recipe.base.ranks import is_first_rank, required_world_size
from recipe.base.settings import RunConfig
from recipe.base.strict import strict_model
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.data.token_folder import TokenFolder, check_vocabulary, tokenizer_identity
from recipe.engine.build import build_engine, check_compute
from recipe.model import RecipeMoeConfig
from recipe.run.checkpoint_files import find, read_manifest
from recipe.run.folder import last_start
from recipe.run.identity import Identity, check_identity, data_identity
from recipe.run.phases.recorded import recorded_phases, trained_phase_of
from recipe.run.phases.run_data import RunData, folders_of


class RestorableRun:
    """A run folder and the checkpoint chosen from it; `restore` builds the engine, inside a session.

    `run` and `shape` are those of the phase that its weights were last trained in, `number`.

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
        start = last_start(folder)
        path = find(folder / "checkpoints", checkpoint)
        manifest = read_manifest(path)
        self.number, self._phases = trained_phase_of(manifest), recorded_phases(start)
        self.run = self._phases[self.number].run
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
        self._name, self._identity, self.ds_raw = path.name, manifest["identity"], manifest["ds_config"]
        self.train_state = TrainState(**manifest["train_state"])
        # As it was trained, whatever has become of the files that the run was started with.
        trained = recorded_phases(manifest)[self.number]
        self.shape, self.routing = trained.shape, trained.run.routing
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
        """The token folder that the run began with.

        Args:
            remedy: what to do where it is not what the checkpoint was trained on.

        Raises:
            UserError: it is not there, or not what it was.
        """
        tokens = TokenFolder(self._phases[0].run.data.tokens)
        self._check("data", data_identity(tokens), remedy)
        return tokens

    def tokens_read(self) -> dict[str, float]:
        """Tokens of each source that the run had read by the checkpoint."""
        state = self.train_state
        order = RunData(self._phases, folders_of(self._phases)).order
        return order.tokens_read(state.phase, state.phase_sequences, state.sequences)

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
