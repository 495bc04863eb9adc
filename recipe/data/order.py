"""What each phase of a run reads: a pure function of the seed, the phases as planned, and what the earlier ones have read.

Phases of one token folder and sequence length go on in each source where the phase before them stopped, whatever the
mixture does. Phases of another length have another region of each source (`recipe/data/regions.py`), those of another
folder have an order of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.base.errors import UserError
from recipe.data.cycles import Cycles
from recipe.data.loader import BatchOrder
from recipe.data.mixture import PhaseData, Stretch, named, plan_mixture
from recipe.data.regions import Demand, Region, split_source
from recipe.data.token_folder import Source

__all__ = ["PhaseData", "RunOrder"]


class RunOrder:
    """The order of a run's data.

    Args:
        phases: as planned, in their order.
        seed: of the order.

    Raises:
        UserError: a mixture that cannot be planned, or a source too small for its sequences.
    """

    def __init__(self, phases: Sequence[PhaseData], seed: int):
        self.phases, self.seed = tuple(phases), seed
        self._stretches = [_of_read_sources(stretches) for stretches in plan_mixture(phases)]
        self._cycles = [Cycles(stretches, seed, number) for number, stretches in enumerate(self._stretches)]
        self._regions: list[dict[str, Region]] = [{} for _ in phases]
        for folder in dict.fromkeys(phase.folder for phase in phases):
            self._split_sources(folder)

    def names(self, number: int) -> list[str]:
        """The sources that a phase reads."""
        return self._cycles[number].names

    def facts(self, number: int) -> dict[str, Any]:
        """All that decides what a phase reads, besides how much the phases before it have read; for JSON.

        They stay when later phases are prolonged, with two exceptions: shares that `max_epochs` limits, since later phases
        claim their data first, and regions of a source that is read in several lengths, unless the phase is of its first
        length and the source has tokens to spare.
        """
        phase, regions = self.phases[number], self._regions[number]
        return {
            "seed": self.seed,
            "phase": number,
            "folder": phase.folder,
            "seq_length": phase.seq_length,
            "stretches": _facts_of(self._cycles[number]),
            "regions": {name: list(regions[name]) for name in self.names(number)},
            "goes_on_after": [{"phase": n, "stretches": _facts_of(self._cycles[n])} for n in self._before(number)],
        }

    def of_phase(self, number: int, read: Sequence[int], sources: Sequence[Source], skip_damage: bool) -> BatchOrder:
        """The sequences of a phase, from its beginning.

        Args:
            read: sequences that each phase before it has read.
            sources: of the phase's folder; at least those of `names`.
            skip_damage: see `BatchOrder`.

        Raises:
            UserError: the shards of a source hold no sequence.
        """
        with named(number, self.phases):
            return BatchOrder(
                [source for source in sources if source.name in self.names(number)],
                self._stretches[number],
                self.phases[number].seq_length,
                self.seed,
                skip_damage,
                phase=number,
                regions=self._regions[number],
                read_before=self._read_before(number, read),
            )

    def tokens_read(self, number: int, read: Sequence[int], sequences: int) -> dict[str, float]:
        """Tokens of each source that the run has read after so many sequences of a phase.

        Args:
            read: sequences that each phase before it has read.
        """
        tokens = dict.fromkeys(self._all_names(), 0.0)
        for n, name, count in self._counts(number, read, sequences):
            tokens[name] += count * self.phases[n].seq_length
        return tokens

    def epochs(self, number: int, read: Sequence[int], sequences: int) -> dict[str, float]:
        """How often each source has been read by then, the sum over folders that have one of its name."""
        epochs = dict.fromkeys(self._all_names(), 0.0)
        for n, name, count in self._counts(number, read, sequences):
            epochs[name] += count * self.phases[n].seq_length / self.phases[n].sizes[name]
        return epochs

    def _all_names(self) -> list[str]:
        return sorted({name for cycles in self._cycles for name in cycles.names})

    def _counts(self, number: int, read: Sequence[int], sequences: int) -> list[tuple[int, str, int]]:
        """Phase, source, and how many of its sequences were read, up to a phase."""
        assert len(read) >= number
        reached = [*read[:number], sequences]
        return [
            (n, name, count) for n, total in enumerate(reached) for name, count in self._cycles[n].count(total).items()
        ]

    def _before(self, number: int) -> list[int]:
        """The phases that a phase goes on after: of its folder and length."""
        key = lambda phase: (phase.folder, phase.seq_length)  # noqa: E731
        return [n for n in range(number) if key(self.phases[n]) == key(self.phases[number])]

    def _read_before(self, number: int, read: Sequence[int]) -> dict[str, int]:
        assert len(read) >= number
        counts = dict.fromkeys(self.names(number), 0)
        for n in self._before(number):
            for name, count in self._cycles[n].count(read[n]).items():
                if name in counts:
                    counts[name] += count
        return counts

    def _split_sources(self, folder: str) -> None:
        """Give each phase of a folder its region of each source."""
        of_folder = [number for number, phase in enumerate(self.phases) if phase.folder == folder]
        for name in sorted({name for number in of_folder for name in self.names(number)}):
            by_length: dict[int, list[int]] = {}
            for number in of_folder:
                if name in self.names(number):
                    by_length.setdefault(self.phases[number].seq_length, []).append(number)
            size = int(self.phases[of_folder[0]].sizes[name])
            regions = self._regions_of(name, size, list(by_length.values()))
            for numbers, region in zip(by_length.values(), regions, strict=True):
                for number in numbers:
                    self._regions[number][name] = region

    def _regions_of(self, name: str, size: int, by_length: Sequence[Sequence[int]]) -> list[Region]:
        """The region of a source for the phases of each length."""
        if len(by_length) == 1:
            return [(0, size)]
        demands = [self._demand(name, numbers) for numbers in by_length]
        regions = split_source(size, demands)
        for numbers, demand, (first, end) in reversed(list(zip(by_length, demands, regions, strict=True))):
            if end - first <= demand.seq_length:
                lengths = " and ".join(str(d.seq_length) for d in demands)
                with named(numbers[0], self.phases):
                    raise UserError(
                        f"source '{name}' has {size} tokens for sequences of {lengths}, too few for one of {demand.seq_length} + 1; "
                        "give it no weight in this phase, or add data"
                    )
        return regions

    def _demand(self, name: str, numbers: Sequence[int]) -> Demand:
        """What phases of one length read of a source, and have in spare for a last batch beyond their end."""
        seq_length, planned, with_spare = self.phases[numbers[0]].seq_length, 0, 0
        for number in numbers:
            sequences = -int(-self.phases[number].tokens // seq_length)
            count = self._cycles[number].count
            planned += max(1, count(sequences)[name])
            with_spare += max(1, count(sequences + max(sequences // 64, 32))[name]) + 1
        return Demand(planned * seq_length, (with_spare - planned) * seq_length, seq_length)


def _of_read_sources(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Stretches of the sources alone that one of them gives a share."""
    read = [name for name in stretches[0].weights if any(stretch.weights[name] for stretch in stretches)]
    return [Stretch(stretch.first_cycle, {name: stretch.weights[name] for name in read}) for stretch in stretches]


def _facts_of(cycles: Cycles) -> list[dict[str, Any]]:
    return [{"first_cycle": first, "places": places} for first, places in cycles.stretches]
