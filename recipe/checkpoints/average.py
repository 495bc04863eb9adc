"""A moving average of the weights, kept while the run trains, and saved in its checkpoints.

An average of the last tokens' weights is about the model that a decay of the learning rate would end in (see `decay_weights.py`),
at any time and without the decay. Here it is exponential, in fp32, of each rank's own part of the optimizer's weights, so it takes
4 bytes per parameter over all ranks and no exchange:

    average = average + (1 - 2^(-tokens since the last update / half_life_tokens)) * (weights - average)

Each rank saves its parts by the tensors' names in the interchange layout and their places in them. A run on other ranks reads from
all files what it holds itself: unlike the optimizer's states an average needs no resharding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch

from recipe.base.errors import UserError
from recipe.base.settings import MovingAverage as Settings
from recipe.checkpoints.fingerprints import trained_pieces
from recipe.checkpoints.unpickling import only_known_classes

VERSION = 1


def average_file(rank: int) -> str:
    return f"average_rank_{rank:05d}.pt"


@dataclass(frozen=True)
class Part:
    """A part of a tensor's average: its elements from number `first` on."""

    name: str
    first: int
    values: torch.Tensor


@dataclass(frozen=True)
class SavedAverage:
    """What a rank saved: its parts, and the tokens that the run had trained on when they were updated."""

    tokens: int
    parts: list[Part]


def saved_average(path: Path) -> SavedAverage:
    """Read a rank's file; its tensors are read when they are used.

    Raises:
        UserError: it is of another version.
    """
    with only_known_classes(path.parent):
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if saved["version"] != VERSION:
        raise UserError(
            f"{path} is of version {saved['version']}, and this recipe reads version {VERSION}; use its own"
        )
    return SavedAverage(saved["tokens"], [Part(*part) for part in saved["parts"]])


class MovingAverage:
    """This rank's part of the average.

    Args:
        tokens: that the run has trained on; the average begins with the engine's weights of now.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, settings: Settings, tokens: int):
        self._engine, self._settings, self.tokens = engine, settings, tokens
        self.parts = [Part(p.name, p.first, p.values.detach().float().clone()) for p in trained_pieces(engine)]

    def due(self, step: int) -> bool:
        return step % self._settings.every_steps == 0

    @torch.no_grad()
    def update(self, tokens: int) -> None:
        """Take in the weights of now.

        Args:
            tokens: that the run has trained on.
        """
        share = 1 - 0.5 ** ((tokens - self.tokens) / self._settings.half_life_tokens)
        for part, piece in zip(self.parts, trained_pieces(self._engine), strict=True):
            part.values.lerp_(piece.values.float(), share)
        self.tokens = tokens

    def state(self) -> dict[str, Any]:
        """What a checkpoint is to hold."""
        parts = [(part.name, part.first, part.values) for part in self.parts]
        return {"version": VERSION, "tokens": self.tokens, "parts": parts}

    def load(self, files: Iterable[Path]) -> None:
        """Go on with a saved average, of any number of ranks.

        Args:
            files: of all ranks that saved it.
        """
        saved: dict[str, list[Part]] = {}
        for path in files:
            of_rank = saved_average(path)
            self.tokens = of_rank.tokens
            for part in of_rank.parts:
                saved.setdefault(part.name, []).append(part)
        for part in self.parts:
            filled = sum(_copy_overlap(of, part) for of in saved.get(part.name, ()))
            assert filled == part.values.numel(), f"the saved average lacks elements of {part.name}"


def _copy_overlap(source: Part, target: Part) -> int:
    """Copy the elements that both hold; returns how many."""
    low = max(source.first, target.first)
    count = min(source.first + source.values.numel(), target.first + target.values.numel()) - low
    if count <= 0:
        return 0
    from_, to = low - source.first, low - target.first
    target.values[to : to + count].copy_(source.values[from_ : from_ + count])
    return count


def begun(
    engine: deepspeed.DeepSpeedEngine, settings: Settings, checkpoint: Path, tokens: int
) -> tuple[MovingAverage, bool]:
    """The average of a run that goes on from `checkpoint`, or from its beginning where that is not there.

    Returns:
        the average, and whether it begins anew although the run does not: the checkpoint has none.
    """
    average = MovingAverage(engine, settings, tokens)
    files = sorted(checkpoint.glob("average_rank_*.pt"))
    if files:
        average.load(files)
    return average, bool(tokens) and not files
