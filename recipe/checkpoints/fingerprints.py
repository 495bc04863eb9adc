"""Fingerprints of weights, each expert's matrices one by one, so that one that is swapped, skipped or moved does not pass.

A fingerprint is a sum over a tensor's elements, modulo 2^64: the element's bits as a number above zero, times a weight of
its place in the tensor. Sums can be added up: each rank computes the part that it holds, whatever the ZeRO stage, the
ranks and the expert-parallel size, and the total is the same to the bit. Names and shapes are those of the interchange
layout, one tensor per expert and matrix (`model.layers.1.mlp.experts.3.gate_proj.weight`).

The weights of places are multiply-mix hashes of them, so that two tensors of one size have the same fingerprint by accident
about once in 2^64 (of fp32 values that differ in their signs alone, once in 2^33). It finds mistakes; it is no signature.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from recipe.base.errors import UserError
from recipe.engine.collectives import from_first_rank
from recipe.engine.deepspeed_private import (
    full_size,
    is_first_expert_replica,
    is_partitioned,
    master_parts,
    padded_partition,
)
from recipe.engine.moe.autoep import MATRICES, AutoEPMoELayer, interchange_name
from recipe.huggingface.architectures import EXPERT_MATRIX, is_expert_bias

Fingerprints = dict[str, int]  # by the names of the interchange layout
BLOCK = 1 << 16  # elements that share one table of weights; as int64 they fit into a core's cache
BLOCKS_AT_ONCE = {"cpu": 1, "cuda": 64}  # a GPU wants more at once: 32 MiB
_MODULO = 1 << 64
# Both precisions of a model, as integers of their size; what is added makes the smallest of them 1.
_BITS = {torch.bfloat16: (torch.int16, (1 << 15) + 1), torch.float32: (torch.int32, (1 << 31) + 1)}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _BITS}


def fingerprint(tensor: torch.Tensor, first: int = 0, dtype: torch.dtype | None = None) -> int:
    """The fingerprint of a tensor, or the part that its elements from number `first` on have in a larger one's.

    Args:
        dtype: the precision that the elements are rounded to before; None: their own.
    """
    return int(_sum(tensor, first, dtype)) % _MODULO


@torch.no_grad()
def _sum(tensor: torch.Tensor, first: int, dtype: torch.dtype | None) -> torch.Tensor:
    """`fingerprint` as an int64 scalar on the tensor's device, without waiting for it."""
    flat, total = tensor.detach().reshape(-1), torch.zeros((), dtype=torch.int64, device=tensor.device)
    assert first + flat.numel() <= BLOCK * BLOCK, "a tensor of more than 2^32 elements"
    of_place, of_block = tables(tensor.device)
    head = min(-first % BLOCK, flat.numel())
    body = (flat.numel() - head) // BLOCK * BLOCK
    number = (first + head) // BLOCK
    if head:
        begin = first % BLOCK
        total += (_numbers(flat[:head], dtype) * of_place[begin : begin + head]).sum() * of_block[first // BLOCK]
    for rows in flat[head : head + body].view(-1, BLOCK).split(BLOCKS_AT_ONCE.get(tensor.device.type, 1)):
        sums = _numbers(rows, dtype).mul_(of_place).sum(1)
        total += (sums * of_block[number : number + len(rows)]).sum()
        number += len(rows)
    if tail := flat[head + body :].numel():
        total += (_numbers(flat[head + body :], dtype) * of_place[:tail]).sum() * of_block[number]
    return total


def _numbers(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    integers, above = _BITS[dtype or values.dtype]
    return values.to(dtype or values.dtype).view(integers).to(torch.int64).add_(above)


def _mixed(number: int) -> int:
    """splitmix64's output of a state (Steele, Lea and Flood, OOPSLA 2014), made odd, as the int64 of the same bits."""
    x = (number * 0x9E3779B97F4A7C15) % _MODULO
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % _MODULO
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % _MODULO
    return _signed((x ^ x >> 31) | 1)


def _signed(number: int) -> int:
    return number - _MODULO if number >= _MODULO // 2 else number


@cache
def tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight of each place of a block, and what it is multiplied by in each block.

    On a GPU made before what must not wait for the host.
    """
    made = (torch.tensor([_mixed(number + first) for number in range(BLOCK)]) for first in (1, BLOCK + 1))
    of_place, of_block = (table.to(device) for table in made)
    return of_place, of_block


@dataclass(frozen=True)
class Piece:
    """What this rank holds of one tensor.

    Args:
        first: the number of its first element in the tensor.
        whole: whether it is all of it.
        counts: whether it is this rank's to add up; replicas of it are on other ranks otherwise.
    """

    name: str
    values: torch.Tensor
    first: int
    whole: bool
    counts: bool


class EngineShare:
    """This rank's part of the fingerprints of an engine's weights; nothing is computed until `compute` or a result is asked for.

    Args:
        dtype: of the fingerprints; the engine's, or one that its weights can be rounded to.
        masters: of the optimizer's fp32 weights instead of the model's and its buffers.
        replicas: also of what another rank adds up, to compare it.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        dtype: torch.dtype | None = None,
        *,
        masters: bool = False,
        replicas: bool = True,
    ):
        self.dtype = dtype or _dtype(engine)
        self.names: list[str] = []
        self._pieces: list[Piece] = []
        for names, pieces in _of_masters(engine) if masters else _of_model(engine):
            self.names += names
            self._pieces += [piece for piece in pieces if piece.counts or replicas]
        self._device = engine.device
        tables(self._device)
        self._sums: list[torch.Tensor] | None = None

    def compute(self) -> None:
        """One pass over the weights; on a GPU queued on the current stream."""
        self._sums = [
            _sum(piece.values, piece.first, None if is_expert_bias(piece.name) else self.dtype)
            for piece in self._pieces
        ]

    def counted(self) -> Fingerprints:
        """What this rank adds to each tensor's sum; what it adds nothing to is left out."""
        share: Fingerprints = {}
        for piece, number in self._computed():
            if piece.counts:
                share[piece.name] = (share.get(piece.name, 0) + number) % _MODULO
        return share

    def total(self) -> Fingerprints:
        """The fingerprints; by all ranks together."""
        share = self.counted()
        sums = self._over_ranks([_signed(share.get(name, 0)) for name in self.names])
        return {name: total % _MODULO for name, total in zip(self.names, sums, strict=True)}

    def differing_from(self, expected: Fingerprints) -> list[str]:
        """The names of the tensors that have other fingerprints, or on some rank a replica that has; by all ranks together."""
        whole = {piece.name for piece, number in self._computed() if piece.whole and number != expected.get(piece.name)}
        replicas = self._over_ranks([int(name in whole) for name in self.names])
        totals = self.total()
        return [n for n, differ in zip(self.names, replicas, strict=True) if differ or totals[n] != expected.get(n)]

    def _computed(self) -> list[tuple[Piece, int]]:
        if self._sums is None:
            self.compute()
        assert self._sums is not None
        numbers = torch.stack(self._sums).tolist() if self._sums else []
        return [(piece, number % _MODULO) for piece, number in zip(self._pieces, numbers, strict=True)]

    def _over_ranks(self, numbers: list[int]) -> list[int]:
        reduced = torch.tensor(numbers, device=self._device)
        dist.all_reduce(reduced)
        return reduced.tolist()


def engine_fingerprints(engine: deepspeed.DeepSpeedEngine, dtype: torch.dtype | None = None) -> Fingerprints:
    """The fingerprints of an engine's weights; by all ranks together, equal on all."""
    return EngineShare(engine, dtype).total()


def not_as_recorded(engine: deepspeed.DeepSpeedEngine, manifest: dict[str, Any]) -> list[str]:
    """The names of the weights that are not those whose fingerprints a checkpoint recorded; by all ranks together.

    The optimizer's fp32 weights are compared with what was saved, too: the next update takes the model's weights from them.

    Args:
        manifest: what `packed` returned.
    """
    expected, dtype = unpacked(manifest)
    share = EngineShare(engine, dtype, masters=True)
    wrong = share.differing_from(expected)
    if share.names and dtype.itemsize > _dtype(engine).itemsize:
        # Saved in fp32 and trained on in bf16: the model's weights are those of the optimizer, rounded.
        biases = {name: number for name, number in expected.items() if is_expert_bias(name)}
        rounded = EngineShare(engine, masters=True).total()
        return wrong + EngineShare(engine).differing_from({**rounded, **biases})
    share = EngineShare(engine, dtype)
    missing = sorted(expected.keys() - set(share.names))
    return [*dict.fromkeys([*wrong, *share.differing_from(expected), *missing])]


def folder_fingerprints(
    weights: Callable[[str], torch.Tensor], names: Iterable[str], dtype: torch.dtype | None = None
) -> Fingerprints:
    """The fingerprints of tensors that are read one at a time, in the interchange layout.

    Args:
        weights: from a name to its values.
        dtype: what the engine to compare with has; None: the tensors' own.
    """
    return {name: fingerprint(weights(name), dtype=torch.float32 if is_expert_bias(name) else dtype) for name in names}


def check_engine_equals(engine: deepspeed.DeepSpeedEngine, weights: Callable[[str], torch.Tensor], source: str) -> None:
    """Compare an engine's weights with those that it should have, by all ranks together.

    Args:
        weights: from a name of the interchange layout to its values; only rank 0 reads them, one at a time.
        source: what they are, for the message.

    Raises:
        UserError: some are not equal; on all ranks alike.
    """
    share = EngineShare(engine)
    expected = from_first_rank(
        lambda: folder_fingerprints(lambda name: weights(name).to(engine.device), share.names, share.dtype)
    )
    if wrong := share.differing_from(expected):
        raise UserError(f"the engine has other weights than {source} in {described(wrong)}; run the same command again")


def one_by_one(weights: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """Weights by the names of the interchange layout, of weights by the model's own names, whose experts are stacked."""

    @lru_cache(2)  # gate_proj and up_proj, which come from one, are asked for with down_proj between them
    def stacked(name: str) -> torch.Tensor:
        return weights(name)

    def of(name: str) -> torch.Tensor:
        if (match := EXPERT_MATRIX.fullmatch(name)) is None:
            return weights(name)
        experts, expert, matrix = match["experts"], int(match["expert"]), match["matrix"]
        if matrix == "down_proj":
            return stacked(f"{experts}.down_proj")[expert]
        return stacked(f"{experts}.gate_up_proj")[expert].chunk(2)[matrix == "up_proj"]

    return of


def trained_pieces(engine: deepspeed.DeepSpeedEngine) -> list[Piece]:
    """What this rank holds of all that training changes, each element on one rank: the optimizer's fp32 weights, or the model's
    where it has none of its own; and the expert biases, on the first."""
    masters = [piece for _, pieces in _of_masters(engine) for piece in pieces]
    model = [piece for _, pieces in _of_model(engine) for piece in pieces if piece.counts]
    biases = [piece for piece in model if is_expert_bias(piece.name)]
    return [*masters, *biases] if masters else model


def added_up(names: Iterable[str], shares: Iterable[Fingerprints]) -> Fingerprints:
    """The fingerprints, of what every rank has `counted`."""
    totals = dict.fromkeys(names, 0)
    for share in shares:
        for name, number in share.items():
            totals[name] = (totals[name] + number) % _MODULO
    return totals


def described(names: list[str]) -> str:
    """Tensors in a few words, experts by their numbers."""
    shown: dict[str, None] = {}
    for name in names:
        match = EXPERT_MATRIX.fullmatch(name)
        layer = re.search(r"layers\.(\d+)\.", name)
        shown[f"expert {match['expert']} of layer {layer[1]}" if match and layer else name] = None
    words = list(shown)
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


def packed(prints: Fingerprints, dtype: torch.dtype) -> dict[str, Any]:
    """For a manifest: as hex, the experts of a layer's matrix, which are in order, as one list under `experts.*`."""
    packed_: dict[str, Any] = {}
    for name, number in prints.items():
        text = f"{number:016x}"
        if match := EXPERT_MATRIX.fullmatch(name):
            packed_.setdefault(f"{match['experts']}.*.{match['matrix']}.weight", []).append(text)
        else:
            packed_[name] = text
    return {"dtype": str(dtype).removeprefix("torch."), "tensors": packed_}


def unpacked(manifest: dict[str, Any]) -> tuple[Fingerprints, torch.dtype]:
    """What `packed` was given."""
    prints: Fingerprints = {}
    for name, value in manifest["tensors"].items():
        if isinstance(value, list):
            prints |= {name.replace(".*.", f".{expert}."): int(text, 16) for expert, text in enumerate(value)}
        else:
            prints[name] = int(value, 16)
    return prints, DTYPES[manifest["dtype"]]


def _dtype(engine: deepspeed.DeepSpeedEngine) -> torch.dtype:
    return next(engine.module.parameters()).dtype


# The names of each parameter's tensors, the same on all ranks, and what this rank holds of them.
_Tensors = Iterator[tuple[list[str], list[Piece]]]


def _of_model(engine: deepspeed.DeepSpeedEngine) -> _Tensors:
    """The model's weights and its expert biases."""
    first_rank = dist.get_rank() == 0
    for name, parameter in engine.module.named_parameters():
        yield _tensors_of(engine, name, parameter, *_held(parameter), shared_out=is_partitioned(parameter))
    for name, buffer in engine.module.named_buffers():
        if is_expert_bias(name):
            name = interchange_name(name)
            # Copied, since a step moves them before the optimizer's update.
            yield [name], [Piece(name, buffer.detach().clone(), 0, True, first_rank)]


def _of_masters(engine: deepspeed.DeepSpeedEngine) -> _Tensors:
    """The optimizer's fp32 weights, of which each rank has a part; nothing where the optimizer has none of its own."""
    parts = master_parts(engine)
    for name, parameter in engine.module.named_parameters():
        if parameter in parts:
            yield _tensors_of(engine, name, parameter, *parts[parameter], shared_out=True)


def _tensors_of(
    engine: deepspeed.DeepSpeedEngine,
    name: str,
    parameter: nn.Parameter,
    values: torch.Tensor,
    begin: int,
    *,
    shared_out: bool,
) -> tuple[list[str], list[Piece]]:
    """A parameter's tensors, and what a rank holds of them in `values`, from the parameter's element `begin` on.

    Args:
        shared_out: whether no other rank holds the same elements.
    """
    prefix, _, last = name.rpartition(".")
    owner, _, kind = prefix.rpartition(".")
    layer = engine.module.get_submodule(owner) if kind == "experts" else None
    if not isinstance(layer, AutoEPMoELayer):
        name, whole = interchange_name(name), values.numel() == full_size(parameter)
        return [name], [Piece(name, values, begin, whole, shared_out or dist.get_rank() == 0)] if values.numel() else []
    names = [f"{prefix}.{expert}.{MATRICES[last]}.weight" for expert in range(layer.num_experts)]
    counts = shared_out or is_first_expert_replica(layer)
    return names, list(_experts(layer, full_size(parameter), names, values, begin, counts)) if values.numel() else []


def _experts(
    layer: AutoEPMoELayer, size: int, names: list[str], values: torch.Tensor, begin: int, counts: bool
) -> Iterator[Piece]:
    """The parts of single experts in what this rank holds of a weight [E_local, ...] of `size` elements."""
    each, before = size // layer.num_local_experts, layer.ep_rank * layer.num_local_experts
    end = begin + values.numel()
    for local in range(begin // each, -(-end // each)):
        low, high = max(begin, local * each), min(end, (local + 1) * each)
        part = values[low - begin : high - begin]
        yield Piece(names[before + local], part, low - local * each, high - low == each, counts)


def _held(parameter: Any) -> tuple[torch.Tensor, int]:
    """What this rank holds of a parameter, flat and without padding, and the number of its first element."""
    if not is_partitioned(parameter):
        return parameter.detach().reshape(-1), 0
    partition, begin, size = padded_partition(parameter)
    return partition[:size], begin
