"""An engine built where memory holds NaN until something is written to it: what its partitions hold, on every rank."""

from __future__ import annotations

import sys

import torch

from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Compute, Optimizer
from recipe.base.strict import load_json
from recipe.engine import build as engines
from recipe.engine.session import session
from recipe.model import RecipeMoeConfig
from tests.conftest import ROOT


def fill_with_nan(on: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)


def main(ds_path: str) -> None:
    shape = load_model_shape(ROOT / "recipe/configs/models/tiny")
    engines.be_deterministic = fill_with_nan
    with session():
        engine = engines.build_engine(
            RecipeMoeConfig.from_shape(shape), load_json(ds_path), seed=0, optimizer=Optimizer(), compute=Compute()
        )
        padded = 0
        for group, masters in zip(
            engine.optimizer.fp16_groups, engine.optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            assert torch.isfinite(masters).all()
            for parameter in group:
                assert torch.isfinite(parameter.ds_tensor).all()
                padded += parameter.ds_numel_aligned != parameter.ds_numel
        assert padded
        print("all partitions are finite", flush=True)


if __name__ == "__main__":
    main(sys.argv[-1])
