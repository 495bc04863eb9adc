"""Engines with the same initial weights, cut up in several ways: each has the fingerprints of those weights, and only of those.

Arguments: ds_configs.
"""

from __future__ import annotations

import sys

import pytest
import torch

from recipe.base.errors import UserError
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Compute, Optimizer
from recipe.base.strict import load_json
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter
from recipe.run.engine import build_engine
from recipe.run.fingerprints import check_engine_equals, engine_fingerprints, folder_fingerprints, one_by_one
from recipe.run.session import session
from tests.conftest import ROOT

THIRD, FIFTH = (f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in (3, 5))


def main(ds_paths: list[str]) -> None:
    config = RecipeMoeConfig.from_shape(load_model_shape(ROOT / "recipe/configs/models/tiny"))
    model = RecipeMoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, config, 0)
    weights = one_by_one(model.state_dict().__getitem__)
    with session():
        for path in ds_paths:
            engine = build_engine(config, load_json(path), seed=0, optimizer=Optimizer(), compute=Compute())
            check_engine_equals(engine, weights, "the model")
            prints = engine_fingerprints(engine)
            assert prints == folder_fingerprints(weights, prints, next(engine.module.parameters()).dtype)
            swapped = {THIRD: FIFTH, FIFTH: THIRD}
            with pytest.raises(UserError, match="engine's expert 3 of layer 1, expert 5 of layer 1 is not what"):
                check_engine_equals(engine, lambda name, s=swapped: weights(s.get(name, name)), "the model")
            print(f"{len(prints)} tensors are equal\n", end="", flush=True)


if __name__ == "__main__":
    main([a for a in sys.argv[1:] if not a.startswith("--local_rank")])
