"""The weighted average of checkpoints, as a checkpoint: file by file, on one CPU, without an engine.

Of each rank's optimizer file the fp32 weights are averaged, in sums of fp64 that are rounded once: equal weights stay what they are
to the last bit. At no time is more in memory than one rank's weights; the files are mapped. What training computes with is the
rounding of the averages. Fingerprints are made anew from what is written.

Expert biases are averaged, too. A token's experts are the k largest of score + bias: the bias makes up for what the router's scores
of an expert are above or below the others', so to first order the average of the routers is balanced by the average of the
biases. Each bias also moves about its level by the update rate, which the average evens out. Their mean stays zero.

All else is the newest checkpoint's, the optimizer's moments among it: they are running averages over 1 / (1 - beta) steps, 10 to 20
at the usual betas, and those of checkpoints that are hundreds of steps older say nothing more of the present.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recipe.base.errors import UserError
from recipe.base.files import write_json
from recipe.checkpoints.average import average_file, saved_average
from recipe.checkpoints.fingerprints import Fingerprints, described, fingerprint, packed, unpacked
from recipe.checkpoints.snapshot import write_files
from recipe.checkpoints.zero_files import Held, Layout, ZeroFiles, expert_of_file, load_file, masters
from recipe.huggingface.architectures import is_expert_bias
from recipe.run.checkpoint_files import MANIFEST

AT_ONCE = 1 << 22  # elements whose sums are held as fp64
_MODULO = 1 << 64


@dataclass(frozen=True)
class Weighted:
    """A checkpoint and its weight in the average."""

    checkpoint: Path
    manifest: dict[str, Any]
    weight: float


def weighted_average(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of tensors times weights, in fp64 and then rounded to the tensors' precision."""
    average = torch.empty_like(tensors[0])
    into = average.view(-1).split(AT_ONCE)
    for target, *parts in zip(into, *(tensor.reshape(-1).split(AT_ONCE) for tensor in tensors), strict=True):
        total = torch.zeros(target.shape, dtype=torch.float64)
        for part, weight in zip(parts, weights, strict=True):
            total.add_(part.double(), alpha=weight)
        target.copy_(total)
    return average


@dataclass
class _Written:
    """What has been written so far.

    Args:
        rounded: the weights that the model's files hold, which under ZeRO-3 hold none.
    """

    dtype: torch.dtype
    keeps: bool
    prints: Fingerprints
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounded: dict[str, list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def count(self, name: str, first: int, values: torch.Tensor) -> None:
        dtype = torch.float32 if is_expert_bias(name) else self.dtype
        self.prints[name] = (self.prints[name] + fingerprint(values, first, dtype)) % _MODULO
        if self.keeps and dtype is self.dtype:
            self.rounded.setdefault(name, []).append((first, values.to(self.dtype)))


def check_fingerprints(checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Whether the files are read as DeepSpeed reads them: their weights must have the fingerprints of the manifest.

    Raises:
        UserError: they have not, or there are none.
    """
    if "fingerprints" not in manifest:
        raise UserError(f"{checkpoint} is of a version that recorded no fingerprints; merge newer checkpoints")
    expected, dtype = unpacked(manifest["fingerprints"])
    found, files = dict.fromkeys(expected, 0), ZeroFiles(checkpoint, manifest)
    layout = files.layout()
    for name in files.optimizer_files:
        loaded = load_file(checkpoint / name)
        for held in layout.next_rank(loaded):
            found[held.name] = (found[held.name] + fingerprint(held.of(masters(loaded)), held.first, dtype)) % _MODULO
    if wrong := [name for name, number in expected.items() if found[name] != number and not is_expert_bias(name)]:
        raise UserError(
            f"the files of {checkpoint} hold other weights than were saved in {described(wrong)}; merge others"
        )


def write_merged(sources: Sequence[Weighted], folder: Path, facts: dict[str, Any], done: Callable[[], None]) -> None:
    """Write the average of checkpoints of one topology into `folder`, its manifest last.

    Args:
        sources: by their tokens, the newest last.
        facts: what the manifest holds besides, in place of the newest's.
        done: called after each file.
    """

    def averages(number: int, name: str, held: Iterable[Held]) -> list[torch.Tensor]:
        flats = [masters(load_file(source.checkpoint / name)) for source in sources]
        return [weighted_average(of_group, [s.weight for s in sources]) for of_group in zip(*flats, strict=True)]

    def bias(file: str, name: str) -> torch.Tensor:
        values = [load_file(source.checkpoint / file)["module"][name] for source in sources]
        return weighted_average(values, [source.weight for source in sources])

    _write(sources[-1], folder, facts, averages, bias, done)


def write_average(source: Weighted, folder: Path, facts: dict[str, Any], done: Callable[[], None]) -> None:
    """Write a checkpoint with its moving average in place of its weights into `folder`, its manifest last."""
    biases: dict[str, torch.Tensor] = {}

    def averages(rank: int, name: str, held: Iterable[Held]) -> list[torch.Tensor]:
        values = saved_average(source.checkpoint / average_file(rank))
        biases.update({part.name: part.values for part in values.parts if is_expert_bias(part.name)})
        of_place = {(part.name, part.first): part.values for part in values.parts}
        flats = [flat.clone() for flat in masters(load_file(source.checkpoint / name))]
        for part in held:
            part.of(flats).copy_(of_place[part.name, part.first])
        return flats

    _write(source, folder, facts, averages, lambda _, name: biases[expert_of_file(name)], done)


def _write(
    newest: Weighted,
    folder: Path,
    facts: dict[str, Any],
    averages: Callable[[int, str, list[Held]], list[torch.Tensor]],
    bias: Callable[[str, str], torch.Tensor],
    done: Callable[[], None],
) -> None:
    """Write the newest checkpoint with other weights.

    Args:
        averages: from a rank, the name of its optimizer file and the parts of tensors in it to the flat fp32 weights.
        bias: from a model file's name and a bias's to its values.
    """
    files = ZeroFiles(newest.checkpoint, newest.manifest)
    expected, dtype = unpacked(newest.manifest["fingerprints"])
    written = _Written(dtype, newest.manifest["topology"]["zero_stage"] < 3, dict.fromkeys(expected, 0))
    folder.mkdir(parents=True)
    layout: Layout = files.layout()
    for rank, name in enumerate(files.optimizer_files):
        state = load_file(newest.checkpoint / name)
        held = layout.next_rank(state)
        flats = averages(rank, name, held)
        for part in held:
            written.count(part.name, part.first, part.of(flats))
        masters(state)[:] = flats
        written.files |= write_files([(folder / name, state)], folder)
        done()
    counted: set[str] = set()
    for name in files.model_files:
        state = load_file(newest.checkpoint / name)
        weights = state.get("module", state)
        for key, values in weights.items():
            if is_expert_bias(key):
                weights[key] = bias(name, key)
                if key not in counted:  # each rank's file has them under ZeRO-3
                    written.count(expert_of_file(key), 0, weights[key])
                    counted.add(key)
            elif values.numel():
                weights[key] = _assembled(written.rounded.pop(expert_of_file(key)), values)
        written.files |= write_files([(folder / name, state)], folder)
        done()
    manifest = {
        **newest.manifest,
        **facts,
        "fingerprints": packed(written.prints, dtype),
        "time": time.time(),
        "files": written.files,
    }
    write_json(folder / MANIFEST, manifest)


def _assembled(parts: list[tuple[int, torch.Tensor]], like: torch.Tensor) -> torch.Tensor:
    """A tensor of the parts that ranks hold of it."""
    flat = torch.cat([values for _, values in sorted(parts, key=lambda part: part[0])])
    assert (flat.numel(), flat.dtype) == (like.numel(), like.dtype)
    return flat.view(like.shape)
