"""Engines with the same initial weights, cut up in several ways, and what is planted into their checkpoints.

Arguments: an empty folder, and ds_configs of ZeRO-3 with expert parallel sizes 2 and 1, of ZeRO-1 with 2 in bf16, and of ZeRO-2 with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.files import sha256, write_json
from recipe.base.model_shape import load_model_shape
from recipe.base.settings import Checkpoint, Compute, Optimizer
from recipe.base.strict import load_json
from recipe.checkpoints.fingerprints import (
    check_engine_equals,
    engine_fingerprints,
    folder_fingerprints,
    one_by_one,
    unpacked,
)
from recipe.checkpoints.store import CheckpointStore, TrainState
from recipe.checkpoints.universal import make_universal
from recipe.engine.build import build_engine
from recipe.engine.collectives import from_first_rank
from recipe.engine.session import session
from recipe.model import RecipeMoeConfig, RecipeMoeForCausalLM
from recipe.model.modeling import initialize_parameter
from recipe.run import checkpoint_files as on_disk
from tests.conftest import ROOT

CONFIG = RecipeMoeConfig.from_shape(load_model_shape(ROOT / "recipe/configs/models/tiny"))
ONE, OTHER = 1, 3  # experts of layer 1, both of rank 0
W2 = "model.layers.1.mlp.experts.w2"
SAID = "gives other weights than were saved in expert 1 of layer 1, expert 3 of layer 1; "


def initial_weights() -> Callable[[str], torch.Tensor]:
    model = RecipeMoeForCausalLM(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(parameter, name, CONFIG, 0)
    return one_by_one(model.state_dict().__getitem__)


def engine_of(ds_path: str) -> Any:
    """After a step at rate 0, which leaves the weights as they are: without its moments nothing is resharded."""
    engine = build_engine(CONFIG, load_json(ds_path), seed=0, optimizer=Optimizer(), compute=Compute())
    tokens = torch.arange(16)[None]
    engine.backward(engine(input_ids=tokens, targets=tokens).loss)
    engine.step()
    return engine


def check_equal(engine: Any, weights: Callable[[str], torch.Tensor]) -> None:
    """To what is told without an engine, and to nothing where two experts are swapped."""
    check_engine_equals(engine, weights, "the model")
    prints = engine_fingerprints(engine)
    assert prints == folder_fingerprints(weights, prints, next(engine.module.parameters()).dtype)
    one, other = (f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in (ONE, OTHER))
    to = {one: other, other: one}
    with pytest.raises(UserError, match="other weights than the model in expert 1 of layer 1, expert 3 of layer 1;"):
        check_engine_equals(engine, lambda name: weights(to.get(name, name)), "the model")


def saved(engine: Any, folder: Path) -> tuple[CheckpointStore, Path]:
    store = CheckpointStore(folder, Checkpoint(every_steps=1))
    store.save_now(engine, TrainState(step=1), keep="")
    path = on_disk.find(folder, None)
    prints, dtype = unpacked(load_json(path / on_disk.MANIFEST)["fingerprints"])
    assert (prints, dtype) == (engine_fingerprints(engine), next(engine.module.parameters()).dtype)
    return store, path


def plant(path: Path, file: str, change: Callable[[Any], None]) -> None:
    """Change a file, and have the manifest say that it is so; by rank 0."""

    def planted() -> None:
        state = torch.load(path / file, weights_only=False)
        change(state)
        torch.save(state, path / file)
        manifest = load_json(path / on_disk.MANIFEST)
        manifest["files"][file] = {"bytes": (path / file).stat().st_size, "sha256": sha256(path / file)}
        write_json(path / on_disk.MANIFEST, manifest)

    from_first_rank(planted)


def swap(stacked: torch.Tensor) -> None:
    """Two experts of a tensor [E, ...]."""
    stacked[[ONE, OTHER]] = stacked[[OTHER, ONE]]


def check_refused(store: CheckpointStore, engine: Any, path: Path, remedy: str) -> None:
    assert store.damage(path) == []
    with pytest.raises(UserError, match=f"{SAID}{remedy}"):
        store.load(engine, path)


def partition_of(engine: Any, name: str) -> tuple[int, slice]:
    """Where ZeRO-3's optimizer has this rank's part of a parameter: in which group, and where there."""
    parameter = dict(engine.module.named_parameters())[name]
    for number, group in enumerate(engine.optimizer.fp16_groups):
        sizes = [p.ds_tensor.ds_numel for p in group]
        for place, other in enumerate(group):
            if other is parameter:
                begin = sum(sizes[:place])
                return number, slice(begin, begin + parameter.ds_numel)
    raise KeyError(name)


def zero3(folder: Path, ds_path: str, resharded_ds_path: str, weights: Callable[[str], torch.Tensor]) -> None:
    engine, resharded = engine_of(ds_path), engine_of(resharded_ds_path)
    check_equal(engine, weights)
    check_equal(resharded, weights)
    store, path = saved(engine, folder)
    store.load(engine, path)
    universal = Path(from_first_rank(lambda: str(make_universal(path, workers=1))))
    store.load(resharded, path)
    plant(universal, f"zero/{W2}/fp32.pt", lambda state: swap(state["param"]))
    check_refused(store, resharded, path, f"remove {universal} and run launch/reshard.py again")

    group, part = partition_of(engine, W2)

    def in_group(state: Any) -> None:
        swap(state["optimizer_state_dict"]["fp32_flat_groups"][group].data[part].view(4, -1))

    plant(path, "zero_pp_rank_0_mp_rank_00_optim_states.pt", in_group)
    check_refused(store, engine, path, "resume from another checkpoint")
    from_first_rank(lambda: forget_fingerprints(path))
    store.load(engine, path)


def forget_fingerprints(path: Path) -> None:
    """As a version before would have saved it."""
    manifest = load_json(path / on_disk.MANIFEST)
    del manifest["fingerprints"]
    write_json(path / on_disk.MANIFEST, manifest)


def zero1(folder: Path, ds_path: str, weights: Callable[[str], torch.Tensor]) -> None:
    engine = engine_of(ds_path)
    check_equal(engine, weights)
    store, path = saved(engine, folder)
    store.load(engine, path)
    # The model's weights, which are in a file for each expert.
    file_of = "layer_0_expert_{}_mp_rank_00_model_states.pt"
    before = {e: torch.load(path / file_of.format(e), weights_only=False)[f"{W2}.{e}"] for e in (ONE, OTHER)}
    dist.barrier()
    for expert, other in ((ONE, OTHER), (OTHER, ONE)):
        plant(path, file_of.format(expert), lambda s, e=expert, o=other: s.update({f"{W2}.{e}": before[o]}))
    check_refused(store, engine, path, "resume from another checkpoint")
    # The optimizer's alone, from which the next update would take them.
    engine = engine_of(ds_path)
    if dist.get_rank() == 0:
        swap(dict(engine.module.named_parameters())[W2]._hp_mapping.hp_fragment.data.view(4, -1))
    store, path = saved(engine, folder / "masters")
    check_refused(store, engine, path, "resume from another checkpoint")


def main(folder: str, *ds_paths: str) -> None:
    weights = initial_weights()
    with session():
        zero3(Path(folder) / "zero3", *ds_paths[:2], weights)
        zero1(Path(folder) / "zero1", ds_paths[2], weights)
        check_equal(engine_of(ds_paths[3]), weights)
        print("all swaps are refused\n", end="", flush=True)


if __name__ == "__main__":
    main(*(a for a in sys.argv[1:] if not a.startswith("--local_rank")))
