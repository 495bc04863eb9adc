"""Which tokens of which folder each phase of a run sees when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe.base.errors import UserError, of_key
from recipe.base.run_config.resolved import ResolvedPhase
from recipe.data.loader import BatchOrder
from recipe.data.order import PhaseData, RunOrder
from recipe.data.token_folder import Source, TokenFolder
from recipe.run.identity import data_identity


@dataclass(frozen=True)
class RunData:
    """The phases of a run with the token folder of each.

    Raises:
        UserError: a folder has no tokens to train on, or a mixture cannot be planned.
    """

    phases: Sequence[ResolvedPhase]
    folders: Sequence[TokenFolder]

    @cached_property
    def order(self) -> RunOrder:
        return RunOrder(
            [_phase_data(phase, folder) for phase, folder in zip(self.phases, self.folders, strict=True)],
            self.phases[0].run.seed,
        )

    @cached_property
    def sources(self) -> list[list[Source]]:
        """What each phase reads; shards that are not whole are refused."""
        return [folder.sources("train", self.order.names(number)) for number, folder in enumerate(self.folders)]

    @property
    def names(self) -> set[str]:
        """The sources that some phase reads."""
        return {source.name for sources in self.sources for source in sources}

    @property
    def facts(self) -> list[dict[str, Any]]:
        """All that decides which data each phase reads, as JSON gives it back."""
        facts = [self.order.facts(number) for number in range(len(self.phases))]
        return [dict(fact) for fact in json.loads(json.dumps(facts))]

    def of_phase(self, number: int, read: Sequence[int]) -> BatchOrder:
        """The data of a phase; `read` are the sequences that each phase before it has read."""
        skips_damage = self.phases[number].run.data.on_damage == "skip"
        return self.order.of_phase(number, read, self.sources[number], skips_damage)


def folders_of(phases: Sequence[ResolvedPhase], opened: Mapping[Path, TokenFolder] | None = None) -> list[TokenFolder]:
    """The token folder of each phase, each opened once.

    Args:
        opened: before, by path.

    Raises:
        UserError: one is none; the message names the key.
    """
    folders = dict(opened or {})
    for phase in phases:
        path = phase.run.data.tokens
        if path not in folders:
            folders[path] = of_key(_key(phase), TokenFolder, path)
    return [folders[phase.run.data.tokens] for phase in phases]


def _key(phase: ResolvedPhase) -> str:
    """Of the run config, where a phase has its folder from."""
    own = phase.settings is not None and "tokens" in phase.settings.data
    return f"phases.{phase.number}.data.tokens" if own else "data.tokens"


def _phase_data(phase: ResolvedPhase, folder: TokenFolder) -> PhaseData:
    sizes = {name: float(size) for name, size in folder.sizes("train").items()}
    if not sizes:
        raise UserError(f"{_key(phase)} {phase.run.data.tokens} has no training shards; tokenize more documents")
    content = json.dumps(data_identity(folder), sort_keys=True).encode()
    return PhaseData(
        mixture=phase.run.data.mixture,
        seq_length=phase.run.data.seq_length,
        tokens=phase.end_tokens - phase.first_tokens,
        folder=hashlib.sha256(content).hexdigest(),
        sizes=sizes,
        name="" if phase.settings is None else phase.name,
    )
