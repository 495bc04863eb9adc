"""Which part of which tensor lies where in the files that DeepSpeed's ZeRO optimizers write: read without an engine.

Each rank's optimizer file holds its part of the fp32 weights as a few flat tensors, one per parameter group. Names are those of the
interchange layout, one tensor per expert and matrix, as in `fingerprints.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.base.errors import UserError
from recipe.checkpoints.unpickling import only_known_classes
from recipe.engine.moe.autoep import MATRICES, interchange_name

_OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL_FILE = re.compile(r".*_model_states\.pt")
_EXPERTS = re.compile(r"(?P<experts>.*\.experts)\.(?P<matrix>w[123])(?:\.(?P<expert>\d+))?")


@dataclass(frozen=True)
class Held:
    """A part of a tensor in a rank's flat fp32 weights.

    Args:
        first: the number of its first element in the tensor.
        group, begin: where it begins: the flat tensor, and the element of that.
    """

    name: str
    first: int
    group: int
    begin: int
    numel: int

    def of(self, flats: list[torch.Tensor]) -> torch.Tensor:
        return flats[self.group][self.begin : self.begin + self.numel]


def load_file(path: Path) -> dict[str, Any]:
    """A file of a checkpoint, whose tensors are read when they are used."""
    with only_known_classes(path.parent):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def masters(optimizer_file: dict[str, Any]) -> list[torch.Tensor]:
    """The flat fp32 weights of an optimizer file; the list itself, whose items may be replaced."""
    state = optimizer_file["optimizer_state_dict"]
    return state["fp32_flat_groups" if state["zero_stage"] == 3 else "single_partition_of_fp32_groups"]


def expert_of_file(name: str) -> str:
    """The interchange name of a weight of a model file, where experts that are whole have their number behind the matrix."""
    if (match := _EXPERTS.fullmatch(name)) is None:
        return interchange_name(name)
    return f"{match['experts']}.{match['expert']}.{MATRICES[match['matrix']]}.weight"


class ZeroFiles:
    """The files of a checkpoint.

    Raises:
        UserError: it was written without ZeRO, whose files have another form.
    """

    def __init__(self, checkpoint: Path, manifest: dict[str, Any]):
        self.ranks, self._ep_size = manifest["topology"]["world_size"], manifest["topology"]["autoep_size"]
        if manifest["topology"]["zero_stage"] == 0:
            raise UserError(
                f"{checkpoint} was written without ZeRO; only checkpoints of ZeRO stages 1 to 3 can be merged"
            )
        by_rank = {int(m[1]): name for name in manifest["files"] if (m := _OPTIMIZER_FILE.fullmatch(name))}
        assert sorted(by_rank) == list(range(self.ranks)), f"{checkpoint} lacks optimizer files of some ranks"
        self.optimizer_files = [by_rank[rank] for rank in range(self.ranks)]
        self.model_files = sorted(name for name in manifest["files"] if _MODEL_FILE.fullmatch(name))
        first = next(
            name for name in self.model_files if name.endswith("mp_rank_00_model_states.pt") and "layer_" not in name
        )
        self._shapes: list[dict[str, torch.Size]] = load_file(checkpoint / first)["param_shapes"]

    def layout(self) -> Layout:
        return Layout(self._shapes, self._ep_size)


class Layout:
    """Finds the parts of tensors in the optimizer files, which must be given to it in the order of the ranks."""

    def __init__(self, shapes: list[dict[str, torch.Size]], ep_size: int):
        self._shapes, self._ep_size = shapes, ep_size
        self._rank = 0
        self._before: Counter[tuple[str, int]] = Counter()  # elements of a parameter that ranks before this one hold

    def next_rank(self, optimizer_file: dict[str, Any]) -> list[Held]:
        """What the next rank's file holds."""
        state, ep_rank = optimizer_file["optimizer_state_dict"], self._rank % self._ep_size
        parts = self._of_stage_3(state) if state["zero_stage"] == 3 else self._of_stage_1_or_2(state, ep_rank)
        self._rank += 1
        return [held for part in parts for held in self._tensors_of(part, ep_rank)]

    def _of_stage_3(self, state: dict[str, Any]) -> Iterator[Held]:
        """Of each parameter a part of the same size, the last ones padded, one after another."""
        for group, (shapes, of_group) in enumerate(zip(self._shapes, state["ds_zero_partition_groups"], strict=True)):
            begin = 0
            for name, shape in shapes.items():
                size = -(-shape.numel() // of_group["partition_count"])
                first = of_group["partition_rank"] * size
                yield Held(name, first, group, begin, min(max(0, shape.numel() - first), size))
                begin += size

    def _of_stage_1_or_2(self, state: dict[str, Any], ep_rank: int) -> Iterator[Held]:
        """Of all parameters of a group together a part of the same size: whole parameters, and pieces at its ends."""
        for group, mapping in enumerate(state["param_slice_mappings"]):
            for name, fragment in mapping.items():
                place = (name, ep_rank if _EXPERTS.fullmatch(name) else 0)
                yield Held(name, self._before[place], group, fragment.start, fragment.numel)
                self._before[place] += fragment.numel

    def _tensors_of(self, part: Held, ep_rank: int) -> Iterator[Held]:
        """A part of a parameter as parts of the interchange layout's tensors: single experts of a weight [E_local, ...]."""
        if (match := _EXPERTS.fullmatch(part.name)) is None:
            if part.numel:
                yield Held(interchange_name(part.name), part.first, part.group, part.begin, part.numel)
            return
        local, *matrix = next(shapes[part.name] for shapes in self._shapes if part.name in shapes)
        each, end = torch.Size(matrix).numel(), part.first + part.numel
        for number in range(part.first // each, -(-end // each) if part.numel else 0):
            low, high = max(part.first, number * each), min(end, (number + 1) * each)
            name = f"{match['experts']}.{ep_rank * local + number}.{MATRICES[match['matrix']]}.weight"
            yield Held(name, low - number * each, part.group, part.begin + low - part.first, high - low)
