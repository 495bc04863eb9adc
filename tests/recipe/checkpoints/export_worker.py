"""Run under the launcher by test_export.py: logits of a restored engine on a fixed batch, its experts, and its export.

Arguments: run folder, output folder. The expert biases are set to something, as balancing by bias will, where the
architecture has them, and go through a checkpoint first; where it has none, the export refuses them first.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

import deepspeed
import pytest
import torch
import torch.distributed as dist

import recipe.checkpoints.export
from recipe.base.errors import UserError
from recipe.base.settings import Checkpoint
from recipe.checkpoints.export import Export, export_hf
from recipe.checkpoints.restore import RestorableRun
from recipe.checkpoints.store import CheckpointStore
from recipe.engine.collectives import gathered
from recipe.engine.moe.autoep import moe_layers
from recipe.engine.session import session
from recipe.huggingface import safetensors_writer
from recipe.huggingface.architectures import export_architecture
from recipe.run.checkpoint_files import complete


def own_experts(engine) -> dict[str, torch.Tensor]:
    """This rank's experts by their names in the interchange layout, as AutoEP holds them."""
    tensors = {}
    for name, layer in moe_layers(engine.module):
        for own, theirs in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            weight = getattr(layer.experts, own)
            with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
                for row, values in enumerate(weight.detach().clone()):
                    expert = layer.ep_rank * layer.num_local_experts + row
                    tensors[f"{name}.experts.{expert}.{theirs}.weight"] = values
    return tensors


def refuses(engine, export: Export, message: str) -> None:
    """The export ends on every rank with this message, and leaves nothing behind."""
    with pytest.raises(UserError, match=re.escape(message)):
        export_hf(engine, export)
    dist.barrier()
    assert not export.partial.exists()
    assert not export.output.exists()


class FullDisk(io.BytesIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_refusals(engine, export: Export) -> None:
    """What goes wrong on rank 0 alone in the middle ends all ranks."""
    swapped = {"w1": "up_proj", "w3": "gate_proj", "w2": "down_proj"}
    with patch.object(recipe.checkpoints.export, "MATRICES", swapped):
        refuses(
            engine, export, "model-00003-of-00007.safetensors does not hold the engine's expert 0 of layer 1, expert"
        )
    opened = lambda path, mode: FullDisk() if "00003" in path.name else open(path, mode)  # noqa: E731
    with patch.object(safetensors_writer, "open", opened, create=True):
        refuses(engine, export, "model-00003-of-00007.safetensors: No space left on device; free or permit it")


def main() -> None:
    run_dir, output = (Path(a) for a in sys.argv[1:] if not a.startswith("--local_rank"))
    source = RestorableRun(run_dir, None)
    with session():
        engine, state = source.restore()
        biases = [layer.router.e_score_correction_bias for _, layer in moe_layers(engine.module)]
        for number, bias in enumerate(biases):
            bias.copy_(torch.linspace(-0.1, 0.1, 8).roll(number))
        store = CheckpointStore(output.with_suffix(".checkpoints"), Checkpoint(every_steps=1, keep_last=1))
        store.save(engine, state)
        assert store.finish()
        (path,) = complete(store.folder)
        for bias in biases:
            bias.zero_()
        assert store.load(engine, path) == state
        export = Export(output, source.shape, source.run.tokenizer, max_position_embeddings=32)
        if not export_architecture(source.shape).correction_bias:
            refuses(
                engine, export, "no e_score_correction_bias, but in the checkpoint it is not zero (model.layers.1.mlp)"
            )
            for bias in biases:
                bias.zero_()
        check_refusals(engine, export)
        tokens = torch.randint(0, 1000, (2, 24), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = engine(tokens).logits
        experts = {name: tensor for share in gathered(own_experts(engine)) for name, tensor in share.items()}
        export_hf(engine, export)
        if dist.get_rank() == 0:
            torch.save((tokens, logits), output.with_suffix(".pt"))
            torch.save(experts, output.with_suffix(".experts.pt"))


if __name__ == "__main__":
    main()
