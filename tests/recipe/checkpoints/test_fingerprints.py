"""Fingerprints add up over parts, and change with everything that is not the same weights."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from recipe.checkpoints.fingerprints import (
    BLOCK,
    BLOCKS_AT_ONCE,
    described,
    fingerprint,
    folder_fingerprints,
    one_by_one,
    packed,
    unpacked,
)
from tests.conftest import launch

MODULO = 1 << 64


def mixed(number: int) -> int:
    """splitmix64's output, made odd."""
    x = number * 0x9E3779B97F4A7C15 % MODULO
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % MODULO
    x = (x ^ x >> 27) * 0x94D049BB133111EB % MODULO
    return x ^ x >> 31 | 1


def plainly(tensor: torch.Tensor) -> int:
    """The definition, one element at a time."""
    integer, half = (torch.int16, 1 << 15) if tensor.dtype == torch.bfloat16 else (torch.int32, 1 << 31)
    numbers = tensor.reshape(-1).view(integer).tolist()
    weights = (mixed(i % BLOCK + 1) * mixed(i // BLOCK + BLOCK + 1) for i in range(len(numbers)))
    return sum((bits + half + 1) * weight for bits, weight in zip(numbers, weights, strict=True)) % MODULO


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "blocks_at_once"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 2)])
def test_a_fingerprint_is_the_sum_of_its_parts(dtype, blocks_at_once, monkeypatch):
    monkeypatch.setitem(BLOCKS_AT_ONCE, "cpu", blocks_at_once)  # a GPU takes many
    whole = values(3, BLOCK - 5, dtype=dtype)
    expected, flat = plainly(whole), whole.flatten()
    assert fingerprint(whole) == expected
    for cuts in ((1,), (BLOCK,), (7, 8, 2 * BLOCK + 1), (BLOCK - 1, BLOCK + 1)):
        ends = [0, *cuts, flat.numel()]
        parts = [fingerprint(flat[a:b], first=a) for a, b in itertools.pairwise(ends)]
        assert sum(parts) % MODULO == expected
    columns = whole.T[:, 1:]  # not contiguous
    assert fingerprint(columns) == plainly(columns)
    assert fingerprint(whole[:0]) == 0


def test_every_change_of_a_tensor_changes_its_fingerprint():
    of = values(64, 48)
    others = {
        "rows in another order": of.roll(1, 0),
        "columns in another order": of.roll(1, 1),
        "two rows swapped": of[[1, 0, *range(2, 64)]],
        "itself": of,
        "a row of zeros": of.index_fill(0, torch.tensor([5]), 0),
        "all signs": -of,
        "the last bit of one element": torch.cat((of.flatten()[:-1], of.flatten()[-1:].nextafter(torch.ones(1)))),
        "zeros": torch.zeros_like(of),
        "more zeros": torch.zeros(64, 49),
        "minus zeros": -torch.zeros_like(of),
        "bf16": of.bfloat16(),
        "nothing": of[:0],
    }
    assert len({fingerprint(tensor) for tensor in others.values()}) == len(others)


def test_signs_that_are_flipped_in_pairs_are_seen():
    of = values(256, dtype=torch.bfloat16)
    prints = set()
    for place in range(255):
        flipped = of.clone()
        flipped[place : place + 2] *= -1
        prints.add(fingerprint(flipped))
    assert len(prints | {fingerprint(of)}) == 256


def test_the_precision_is_that_of_the_weights_that_are_compared():
    of = values(3, BLOCK)
    assert fingerprint(of, dtype=torch.bfloat16) == fingerprint(of.bfloat16())
    bias = values(8)
    names = ["model.norm.weight", "model.layers.1.mlp.gate.e_score_correction_bias"]
    weights = dict(zip(names, (of, bias), strict=True)).__getitem__
    prints = folder_fingerprints(weights, names, torch.bfloat16)
    assert list(prints.values()) == [fingerprint(of.bfloat16()), fingerprint(bias)]


def test_a_manifest_holds_the_experts_of_a_matrix_as_one_list():
    names = [f"model.layers.1.mlp.experts.{expert}.{m}_proj.weight" for m in ("gate", "down") for expert in range(12)]
    prints = {name: fingerprint(values(4, seed=seed)) for seed, name in enumerate([*names, "lm_head.weight"])}
    stored = json.loads(json.dumps(packed(prints, torch.bfloat16)))
    assert set(stored["tensors"]) == {
        "model.layers.1.mlp.experts.*.gate_proj.weight", "model.layers.1.mlp.experts.*.down_proj.weight", "lm_head.weight",
    }  # fmt: skip
    assert len(stored["tensors"]["model.layers.1.mlp.experts.*.gate_proj.weight"]) == 12
    assert unpacked(stored) == (prints, torch.bfloat16)


def test_stacked_experts_are_read_one_by_one():
    of = {"a.mlp.experts.gate_up_proj": values(3, 4, 5), "a.mlp.experts.down_proj": values(3, 5, 2), "b": values(2)}
    weights = one_by_one(of.__getitem__)
    assert weights("a.mlp.experts.2.gate_proj.weight").equal(of["a.mlp.experts.gate_up_proj"][2, :2])
    assert weights("a.mlp.experts.1.up_proj.weight").equal(of["a.mlp.experts.gate_up_proj"][1, 2:])
    assert weights("a.mlp.experts.0.down_proj.weight").equal(of["a.mlp.experts.down_proj"][0])
    assert weights("b").equal(of["b"])


def test_experts_are_named_by_their_numbers():
    experts = [f"model.layers.{n}.mlp.experts.3.{m}_proj.weight" for n in range(1, 7) for m in ("gate", "up")]
    assert (
        described([*experts[:3], "model.norm.weight"]) == "expert 3 of layer 1, expert 3 of layer 2, model.norm.weight"
    )
    assert described(experts).endswith("expert 3 of layer 4 and 2 more")


@pytest.mark.distributed
def test_experts_that_are_swapped_in_a_checkpoint_are_named(write_ds, tmp_path):
    sizes = {"micro_batch": 1, "accumulation": 1}
    cut_up = (
        {"autoep_size": 2},
        {"autoep_size": 1},
        {"autoep_size": 2, "stage": 1, "bf16": {"enabled": True}},
        {"autoep_size": 1, "stage": 2},
    )
    paths = [write_ds(2, **sizes, **options) for options in cut_up]
    done = launch(2, "tests/recipe/checkpoints/fingerprints_worker.py", tmp_path / "checkpoints", *paths)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all swaps are refused") == 2
    assert done.stdout.count("is of a version that recorded no fingerprints; its weights are not compared") == 1
