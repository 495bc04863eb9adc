"""The checkpoints that a run has: which one it goes on from, loading it, and setting those aside that it must not go on from.

By all ranks together. `store.py` saves them; `recipe/run/checkpoint_files.py` says what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.checkpoints.fingerprints import described, not_as_recorded
from recipe.checkpoints.universal import load_universal
from recipe.checkpoints.unpickling import only_known_classes
from recipe.engine.collectives import from_first_rank, gathered
from recipe.engine.deepspeed_private import autoep_size
from recipe.engine.step_guard import with_new_window
from recipe.run import checkpoint_files as on_disk
from recipe.run.folder import NO_ORDERS, SUSPECT, Orders, left_by
from recipe.run.identity import EVALUATION, check_identity

FINGERPRINTS = "fingerprints"  # of a manifest; versions before had none


@dataclass
class TrainState:
    """All that a resumed run needs besides the engine's own state.

    There is no state of random numbers: order, initial weights and jitter are functions of the seed and the position.
    """

    step: int = 0  # optimizer steps done, skipped ones included
    sequences: int = 0  # sequences of the phase consumed: the position in its data
    tokens: int = 0  # tokens trained on: the position in the schedule
    mitigations: dict[str, Any] = field(default_factory=dict)  # which remedies hold, and until when
    guard: dict[str, Any] = field(default_factory=dict)  # what the step guard has seen
    rewinds: int = 0  # how often the run went back before a spike
    good_probe: int = 0  # the last step after which all ranks computed the same bits
    phase: int = 0  # of the run config's, from 0
    phase_sequences: list[int] = field(default_factory=list)  # consumed in each phase before
    left_out: list[int] = field(default_factory=list)  # a later phase, and the sequences of a spike at its beginning

    @property
    def first_sequence(self) -> int:
        """The position in the data at which the phase began."""
        phase, sequences = self.left_out or (-1, 0)
        return sequences if phase == self.phase else 0

    def advance(self, sequences: int, tokens: int) -> None:
        self.step, self.sequences, self.tokens = self.step + 1, self.sequences + sequences, self.tokens + tokens

    def in_next_phase(self) -> TrainState:
        """The state with which the next phase begins: other data and lengths have another level of loss."""
        state = replace(
            self,
            phase=self.phase + 1,
            phase_sequences=[*self.phase_sequences, self.sequences],
            guard=with_new_window(self.guard),
        )
        state.sequences = state.first_sequence
        return state


def topology(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    return on_disk.topology(
        world_size=dist.get_world_size(),
        autoep_size=autoep_size(engine),
        zero_stage=engine.zero_optimization_stage(),
    )


class StoredCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        provenance: what the manifests of this run hold besides (configs, identity, versions).
    """

    def __init__(self, folder: Path, provenance: dict[str, Any]):
        self.folder, self._provenance = folder, provenance
        self._events: list[dict[str, Any]] = []  # on rank 0

    def take_events(self) -> list[dict[str, Any]]:
        """What happened since the last call, on rank 0."""
        taken, self._events = self._events, []
        return taken

    def choose(
        self,
        name: str | None = None,
        *,
        fall_back: bool,
        orders: Orders = NO_ORDERS,
        committed: Sequence[int] = (),
    ) -> Path | None:
        """The newest checkpoint (or `name`) whose every file has its checksum; all ranks together, before any engine.

        Args:
            fall_back: set a damaged one aside and take the one before it, or none where the run has none yet, instead
                of stopping.
            orders: of earlier starts, which checkpoints are set aside; a checkpoint that is named is gone on from all the
                same, unless ranks computed other bits before it.
            committed: the steps of the checkpoints that the run has committed, as far as is recorded.

        Returns:
            None where the run is to start from the beginning.

        Raises:
            UserError: on all ranks alike; a damaged one without `fall_back`, no such checkpoint, none although the run
                has committed some, none that is left from before the last good probe, or one of other inputs than this run's.
        """
        if orders.good_until is not None:
            from_first_rank(partial(self._set_aside_suspects, orders.good_until))
        while True:
            candidates = from_first_rank(lambda: self._candidates(name, orders, fall_back=fall_back))
            if not candidates:
                from_first_rank(lambda: self._check_absence(committed, orders))
                return None
            path = Path(candidates[-1])
            problems = self.damage(path)
            if not problems:
                self._check_identity(path)
                return path
            if not fall_back:
                raise UserError(f"{problems[0]}; resume with --resume auto to go on from the checkpoint before it")
            from_first_rank(partial(self._set_aside, path, "damaged", "checkpoint_damaged", problems[0]))

    def _candidates(self, name: str | None, orders: Orders, *, fall_back: bool) -> list[str]:
        if name is not None:
            return [str(on_disk.find(self.folder, name))]
        checkpoints = on_disk.complete(self.folder)
        for path in list(checkpoints):
            if (why := left_by(path, orders)) is not None:
                self._set_aside(path, *why)
                checkpoints.remove(path)
        if not checkpoints and not fall_back:
            on_disk.find(self.folder, None)  # says that there is none
        return [str(path) for path in checkpoints]

    def _set_aside(self, path: Path, why: str, event: str, message: str) -> None:
        aside = on_disk.set_aside(path, why)
        message = f"{message}; set aside as {aside.name}"
        self._events.append({"event": event, "step": on_disk.step_of(path), "message": message})

    def _check_absence(self, committed: Sequence[int], orders: Orders) -> None:
        """Refuse to start from the beginning where checkpoints should be; a rewind may go back before the first."""
        gone = [step for step in committed if orders.rewind is None or step < orders.rewind["before_step"]]
        if gone:
            raise on_disk.no_checkpoint_left(self.folder, gone[-1])

    def _check_identity(self, path: Path) -> None:
        if (own := self._provenance.get("identity")) is not None:
            current = {part: value for part, value in own.items() if part != EVALUATION}
            recorded = on_disk.read_manifest(path)["identity"]
            check_identity(recorded, current, path, "restore them, or resume from another checkpoint")

    def leave_younger(self, chosen: Path) -> None:
        """Set aside the checkpoints that are younger than the one that the run goes on from, by rank 0.

        They are of a branch that ends here: the run will save other states under their steps.
        """
        younger = [p for p in on_disk.complete(self.folder) if on_disk.step_of(p) > on_disk.step_of(chosen)]
        names = [on_disk.set_aside(path, "left").name for path in younger]
        if names:
            message = f"going on from {chosen.name}; the younger ones are set aside as {', '.join(names)}"
            self._events.append({"event": "branch_left", "step": on_disk.step_of(chosen), "message": message})

    def leave_suspect(self, last_update: int) -> str:
        """Set aside the checkpoints that hold the last update before steps that were skipped; all ranks together.

        Without an older one they stay, since there is nothing better to go on from.

        Args:
            last_update: the step of that update.

        Returns:
            what to go on from, in a few words.
        """

        def leave() -> str:
            checkpoints = on_disk.complete(self.folder)
            suspect = [path for path in checkpoints if on_disk.step_of(path) >= last_update]
            sound = [path for path in checkpoints if on_disk.step_of(path) < last_update]
            if not sound:
                return "there is no checkpoint from before them"
            names = [on_disk.set_aside(path, "suspect").name for path in suspect]
            aside = f"; {', '.join(names)} may be ruined and is set aside" if names else ""
            return f"{sound[-1]} is the newest checkpoint from before them, which --resume auto takes{aside}"

        return from_first_rank(leave)

    def unmark(self, reason: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Let retention have checkpoints that were marked to be kept for a reason that holds no more; all ranks together.

        Args:
            holds: by a checkpoint's manifest.
        """

        def unmark() -> None:
            for path in on_disk.complete(self.folder):
                if on_disk.kept_for(path) != reason:
                    continue
                with suppress(UserError):  # one that cannot be read stays as it is
                    if not holds(on_disk.read_manifest(path)):
                        (path / on_disk.KEEP).unlink()
                        message = f"{path.name} is not {reason} any more, and is kept no longer than others"
                        event = {"event": "checkpoint_unmarked", "step": on_disk.step_of(path), "message": message}
                        self._events.append(event)

        from_first_rank(unmark)

    def _set_aside_suspects(self, good_until: int) -> None:
        checkpoints = on_disk.complete(self.folder)
        suspects = [path for path in checkpoints if on_disk.step_of(path) > good_until]
        if suspects and suspects == checkpoints:
            probe = (
                f"the last good probe (step {good_until:,})" if good_until else "the first probe, which was not good"
            )
            raise UserError(
                f"{self.folder} has no checkpoint from before {probe}; copy one back, or "
                f"remove {self.folder.parent / SUSPECT} to go on from one that may be corrupt"
            )
        for path in suspects:
            message = f"{path} was trained while a rank computed other bits"
            self._set_aside(path, "suspect", "checkpoint_suspect", message)

    def damage(self, path: Path) -> list[str]:
        """What is wrong with a checkpoint's files, in their order; each rank reads its share of them."""
        try:
            files = sorted(on_disk.read_manifest(path)["files"].items())
            found = on_disk.damage(path, files[dist.get_rank() :: dist.get_world_size()])
        except UserError as error:
            found = [str(error)]
        return sorted({sentence for share in gathered(found) for sentence in share})

    def load(self, engine: deepspeed.DeepSpeedEngine, path: Path) -> TrainState:
        """Load a checkpoint that `choose` returned.

        Raises:
            UserError: of another topology, and not in its universal form yet; or the engine does not have the weights that
                were saved then; on all ranks alike.
        """
        manifest, here = on_disk.read_manifest(path), topology(engine)
        remedy = "resume from another checkpoint"
        if manifest["topology"] == here:
            with only_known_classes(path):
                loaded, _ = engine.load_checkpoint(str(self.folder), tag=path.name, load_lr_scheduler_states=False)
            assert loaded is not None, f"DeepSpeed found no checkpoint in {path}"
        else:
            universal = self.universal_for(path, here)
            if found := self.damage(universal):
                raise UserError(f"{found[0]}; remove {universal} and run launch/reshard.py again")
            load_universal(engine, universal)
            remedy = f"remove {universal} and run launch/reshard.py again"
        self._check_weights(engine, path, manifest, remedy)
        return TrainState(**manifest["train_state"])

    def _check_weights(
        self, engine: deepspeed.DeepSpeedEngine, path: Path, manifest: dict[str, Any], remedy: str
    ) -> None:
        if FINGERPRINTS not in manifest:
            if dist.get_rank() == 0:
                print(
                    f"note: {path} is of a version that recorded no fingerprints; its weights are not compared",
                    flush=True,
                )
        elif wrong := not_as_recorded(engine, manifest[FINGERPRINTS]):
            raise UserError(f"{path} gives other weights than were saved in {described(wrong)}; {remedy}")

    def universal_for(self, path: Path, here: dict[str, int]) -> Path:
        """The universal form of a checkpoint of another topology.

        Raises:
            UserError: it has not been made, or this one cannot be loaded from it.
        """
        written = on_disk.read_manifest(path)["topology"]
        on_disk.check_loadable(path, written, here)
        return on_disk.universal_of(path)
