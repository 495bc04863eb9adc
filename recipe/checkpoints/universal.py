"""Checkpoints for any number of ranks, through DeepSpeed's Universal Checkpoint.

Measured on DeepSpeed 0.19.8: after its load every parameter group has the hyperparameters of the first one, so that
norms decay; the parameters share one `step` tensor, which then advances several times a step; and buffers, which the
expert biases are, keep what the engine was built with. The losses differ by 5e-3. All three are put right here.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import deepspeed
import torch

from recipe.base.errors import UserError
from recipe.base.files import flush_file, rename_folder, sha256, write_json
from recipe.checkpoints.unpickling import only_known_classes
from recipe.engine.build import own_hyperparameters
from recipe.engine.deepspeed_private import convert_to_universal, loading_universal, torch_optimizer
from recipe.run import checkpoint_files as on_disk


def make_universal(checkpoint: Path, workers: int) -> Path:
    """Convert a checkpoint; the universal form appears beside it only when complete.

    Raises:
        UserError: the checkpoint is damaged, or of a kind that DeepSpeed does not convert.
    """
    manifest, target = on_disk.read_manifest(checkpoint), on_disk.universal_of(checkpoint)
    if on_disk.universal_state(checkpoint) == "ready":
        return target
    if found := on_disk.damage(checkpoint, sorted(manifest["files"].items())):
        raise UserError(f"{found[0]}; reshard an older checkpoint with --checkpoint")
    if manifest["topology"]["zero_stage"] == 0:
        raise UserError(f"{checkpoint} was written without ZeRO, which DeepSpeed does not convert")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with redirect_stdout(sys.stderr), only_known_classes(checkpoint):
        try:
            convert_to_universal(checkpoint, partial, workers)
        except (KeyError, RuntimeError) as error:
            if manifest["train_state"]["step"]:
                raise
            # Measured on DeepSpeed 0.19.8: it looks for moments, which an optimizer has from its first step on.
            raise UserError(
                f"{checkpoint} is from before the first step, and its optimizer has no states to reshard; train a step with "
                "the ds_config that it was written with, or import again with the new one"
            ) from error
    (checkpoint.parent / "latest_universal").unlink(missing_ok=True)  # DeepSpeed's, of the partial name
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        flush_file(path)
        files[str(path.relative_to(partial))] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    made_from = on_disk.digest(checkpoint)
    write_json(partial / on_disk.MANIFEST, {**manifest, "files": files, "made_from": made_from})
    shutil.rmtree(target, ignore_errors=True)
    rename_folder(partial, target)
    return target


def load_universal(engine: deepspeed.DeepSpeedEngine, universal: Path) -> None:
    """Load weights, optimizer and counters into an engine of any number of ranks and expert-parallel size."""
    with loading_universal(engine), own_hyperparameters(engine), only_known_classes(universal):
        loaded, _ = engine.load_checkpoint(str(universal.parent), tag=universal.name, load_lr_scheduler_states=False)
    assert loaded is not None, f"DeepSpeed found no checkpoint in {universal}"
    for state in torch_optimizer(engine).state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
    _load_buffers(engine, universal)


def _load_buffers(engine: deepspeed.DeepSpeedEngine, universal: Path) -> None:
    """Buffers are whole on every rank, so any rank's file has them."""
    file = sorted(universal.glob("*model_states.pt"))[0]
    with only_known_classes(universal):
        saved = torch.load(file, map_location="cpu", weights_only=True)["module"]
    persistent = engine.module.state_dict().keys()
    for name, buffer in engine.module.named_buffers():
        if name in persistent:
            buffer.copy_(saved[name])
