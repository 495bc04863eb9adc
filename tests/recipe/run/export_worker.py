"""Run under the launcher by test_export.py: logits of a restored engine on a fixed batch, and its export.

Arguments: run folder, output folder. The expert biases are set to something, as balancing by bias will, and
go through a checkpoint first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from recipe.base.checkpoint_files import complete
from recipe.base.settings import Checkpoint
from recipe.model import RecipeMoeConfig
from recipe.run.autoep import moe_layers
from recipe.run.checkpoint import CheckpointStore
from recipe.run.export import export_hf
from recipe.run.restore import RestorableRun
from recipe.run.session import session


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
        tokens = torch.randint(0, 1000, (2, 24), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = engine(tokens).logits
        export_hf(engine, RecipeMoeConfig.from_shape(source.shape), source.run.tokenizer, output)
        if dist.get_rank() == 0:
            torch.save((tokens, logits), output.with_suffix(".pt"))


if __name__ == "__main__":
    main()
