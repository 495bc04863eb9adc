"""Bytes per token that autograd keeps of a dense and an MoE layer, as JSON: the engine's own layers in bf16.

They recompute, with a budget that holds everything.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter

import numpy as np
import torch

from recipe.base.model_shape import ModelShape, load_model_shape
from recipe.base.run_config.routing import Routing
from recipe.base.settings import Compute, Optimizer
from recipe.engine.build import build_engine, control_routing
from recipe.engine.rehearsal import fake_ranks, random_batch
from recipe.engine.step import run_step
from recipe.model import RecipeMoeConfig
from recipe.planner.search.ds_writer import ds_config_for
from tests.conftest import ROOT

ROWS, SEQ = 4, 128
# What a compiled function saves is chosen by the partitioner before any kernel is made. This backend is inductor's
# decompositions and partitioner without its kernels, which take a minute of a C++ compiler.
PARTITIONED = "aot_eager_decomp_partition"


class SavedBytes:
    """Counts each storage that autograd saves once, under the decoder layer that runs.

    Parameters do not count, whose storage ZeRO-3 frees; a view of one does, which would hold it until the backward pass.
    """

    def __init__(self, module: torch.nn.Module):
        self.by_layer: Counter[int] = Counter()
        self._seen: dict[int, torch.Tensor] = {}  # holds the tensors, so that no address is used twice
        self._layer: int | None = None
        for number, layer in enumerate(module.model.layers):
            layer.register_forward_pre_hook(lambda *_, n=number: setattr(self, "_layer", n))
            layer.register_forward_hook(lambda *_: setattr(self, "_layer", None))

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if self._layer is not None and not isinstance(tensor, torch.nn.Parameter) and address not in self._seen:
            self._seen[address] = tensor
            self.by_layer[self._layer] += storage.nbytes()
        return tensor


def main(compiled: bool) -> None:
    compute = Compute(compile=compiled, recompute="selective")
    tiny = load_model_shape(ROOT / "recipe/configs/models/tiny")
    shape: ModelShape = tiny.model_copy(
        update={"num_hidden_layers": 2, "n_routed_experts": 16, "num_experts_per_tok": 3}
    )
    ds = ds_config_for(shape, 16, stage=3, ep_size=8, micro_batch=ROWS, accumulation=1, kept_gib=1.0)
    config, optimizer = RecipeMoeConfig.from_shape(shape), Optimizer()
    with fake_ranks(16):
        engine = build_engine(config, ds, seed=0, optimizer=optimizer, compute=compute, seq_length=SEQ)
        control = control_routing(engine, Routing(), seq_length=SEQ, sources=["en"], seed=0)
        saved = SavedBytes(engine.module)
        batch = random_batch(np.random.default_rng(0), ROWS, SEQ, shape.vocab_size)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            run_step(engine, control, compute, [batch], step=1, observing=False, update_bias=False)
    per_token = {"dense": saved.by_layer[0] / (ROWS * SEQ), "moe": saved.by_layer[1] / (ROWS * SEQ)}
    print(json.dumps({"shape": shape.model_dump(), "micro_batch": ROWS, "seq_length": SEQ, **per_token}))


if __name__ == "__main__":
    os.environ.pop("LOCAL_SIZE", None)  # set for a rank that was launched; the others of this one do not exist
    if "--kernels" not in sys.argv:
        torch.compile = functools.partial(torch.compile, backend=PARTITIONED)
    main("--compiled" in sys.argv)
