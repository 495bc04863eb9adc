"""Saving checkpoints, by all ranks together; `stored.py` chooses and loads one, `recipe/run/checkpoint_files.py` says what is on disk.

A save is committed in this order, and a kill between any two leaves the checkpoints before it as they were:
every rank writes and flushes its files into `step_N.partial/`, then `rank_R.files.json` with their checksums; when all
ranks have, and the next step's loss has shown that the saved weights are sound, rank 0 writes `manifest.json`, renames
the folder to `step_N/`, moves `latest`, and lets go of old ones.
Ranks tell each other what they have written in the exchange that every step has anyway, so a save in the background
needs no collective of its own, and a rank whose disk is full fails the save for all. All ranks must see one file system.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from recipe.base.errors import UserError
from recipe.base.files import flush_folder, rename_folder, write_json, write_text
from recipe.base.settings import Checkpoint
from recipe.base.strict import load_json
from recipe.checkpoints.average import MovingAverage, average_file
from recipe.checkpoints.fingerprints import EngineShare, added_up, packed
from recipe.checkpoints.snapshot import Files, Snapshot, not_finite, write_files
from recipe.checkpoints.stored import FINGERPRINTS, StoredCheckpoints, TrainState, topology
from recipe.engine.collectives import all_ranks, any_rank, from_first_rank
from recipe.engine.deepspeed_private import save_by
from recipe.run import checkpoint_files as on_disk

COMMIT_POINTS = ("copied", "written", "listed", "manifest", "renamed", "latest")
SPARE_BYTES = 64 << 20  # left free beside a checkpoint, for logs


def reached(point: str) -> None:
    """Called at each of COMMIT_POINTS, by the ranks that get there; the fault suite puts itself here."""


def _list_of(rank: int | str) -> str:
    """The file in which a rank says what it has written."""
    return f"rank_{rank:05d}.files.json" if isinstance(rank, int) else f"rank_{rank}.files.json"


@dataclass
class _Save:
    """A save that has begun."""

    step: int
    partial: Path
    files: Files
    manifest: dict[str, Any]
    keep: str | None
    bytes: int  # over all ranks
    begun: float  # monotonic
    share: EngineShare | None = None  # of this rank, in the fingerprints of the weights
    stall_s: float = 0.0
    thread: threading.Thread | None = None
    error: BaseException | None = None
    unsound: str | None = None  # a tensor of this rank that is not finite
    committing: bool = False
    proven: bool = False  # a step with the saved weights was finite


class CheckpointStore(StoredCheckpoints):
    """The checkpoints of one run, and its saves.

    Args:
        folder: where they are.
        settings: the run config's checkpoint section.
        provenance: what else the manifest holds (configs, identity, versions).
    """

    def __init__(self, folder: str | Path, settings: Checkpoint, provenance: dict[str, Any] | None = None):
        super().__init__(Path(folder), provenance or {})
        self.settings = settings
        self.average: MovingAverage | None = None  # of the weights, to be saved with them
        self._snapshot: Snapshot | None = None
        self._save: _Save | None = None
        self._sound = True  # whether the last step that shows it was applied
        self.took_s = 0.0  # the last save, from its begin to its commit; on rank 0
        self._given_up = ""  # why the last save was, if it was; on rank 0

    def save(self, engine: deepspeed.DeepSpeedEngine, state: TrainState, keep: str | None = None) -> None:
        """Begin to save; `finish` ends it, or `settle` in a later step. `keep` says why retention must spare it.

        Not to be called after a step that was skipped: the weights may be ruined.
        """
        assert self._sound, "the last step was skipped"
        self.finish()
        begun = time.monotonic()
        if self.holds(state.step):
            return
        partial = self.folder / f"{on_disk.checkpoint_name(state.step)}.partial"
        if dist.get_rank() == 0:
            on_disk.remove_leftovers(self.folder)
        if self._snapshot is None:
            self._snapshot = Snapshot(self.settings.asynchronous)
        share = EngineShare(engine, replicas=False)
        self._snapshot.beside = share.compute
        if self.average is not None:
            self._snapshot.added = [(partial / average_file(dist.get_rank()), self.average.state())]
        save_by(engine, self._snapshot)
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        manifest = {
            "schema": on_disk.SCHEMA,
            "version": on_disk.VERSION,
            "topology": topology(engine),
            "train_state": asdict(state),
            **self._provenance,
        }
        total = torch.tensor(self._snapshot.bytes, device=engine.device)
        dist.all_reduce(total)
        self._save = _Save(state.step, partial, self._snapshot.files, manifest, keep, int(total), begun, share)
        save = self._save
        if not from_first_rank(lambda: self._has_room(save)):
            self._drop("there is no room for it")
            return
        save.thread = threading.Thread(target=self._write, args=(save, dist.get_rank()), name="checkpoint")
        save.thread.start()
        if not self.settings.asynchronous:
            save.thread.join()
        save.stall_s = time.monotonic() - begun

    def save_now(self, engine: deepspeed.DeepSpeedEngine, state: TrainState, keep: str) -> None:
        """Save and wait until it is committed.

        Raises:
            UserError: it could not be, and why; on all ranks alike.
        """
        self.save(engine, state, keep)
        self.finish()
        self.check_saved(state.step)

    def holds(self, step: int) -> bool:
        """Whether the checkpoint of a step is committed; all ranks together."""
        return from_first_rank(lambda: self._is_committed(step))

    def check_saved(self, step: int) -> None:
        """Raises UserError, on all ranks alike, if the checkpoint of a step is not committed."""

        def check() -> None:
            if not self._is_committed(step):
                raise UserError(
                    f"the last checkpoint could not be written to {self.folder}; make room and resume: {self._given_up}"
                )

        from_first_rank(check)

    def _is_committed(self, step: int) -> bool:
        return (self.folder / on_disk.checkpoint_name(step) / on_disk.MANIFEST).exists()

    def before_update(self) -> None:
        """Called before the optimizer changes what a save may still be copying."""
        if self._save is not None and self._snapshot is not None:
            begun = time.monotonic()
            self._snapshot.before_update()
            self._save.stall_s += time.monotonic() - begun

    def votes(self) -> dict[str, float]:
        """What this rank has to say of its save in the step's exchange."""
        save = self._save
        if save is None or save.committing or save.thread is None or save.thread.is_alive():
            return {"written": 0.0, "unwritten": 0.0, "unsound": 0.0}
        return {"written": 1.0, "unwritten": float(save.error is not None), "unsound": float(save.unsound is not None)}

    def commit(self, totals: dict[str, float], *, proof: bool | None) -> None:
        """Go on with the save after a step, by what all ranks have said in it; called by all with the same arguments.

        Args:
            proof: whether the step shows that the weights it began with are sound; None if it shows nothing. Until one
                does, what was saved before it waits.
        """
        save = self._save
        if proof is not None:
            self._sound = proof
        if save is None or not proof:
            return
        save.proven = True
        if save.committing:
            assert save.thread is not None
            if not save.thread.is_alive():
                self._conclude()
        elif totals["written"] == dist.get_world_size():
            if totals["unsound"]:
                self._drop(f"the state of {totals['unsound']:.0f} ranks is not finite")
            elif totals["unwritten"]:
                self._drop(f"{totals['unwritten']:.0f} ranks could not write it")
            elif dist.get_rank() == 0:
                save.committing = True
                save.thread = threading.Thread(target=self._commit, args=(save,), name="commit")
                save.thread.start()
            else:
                self._save = None

    def prove(self, sound: bool) -> None:
        """Say of the save that has begun whether its weights have been tried and are sound; on all ranks alike."""
        self._sound = sound
        if self._save is not None and sound:
            self._save.proven = True

    def finish(self) -> bool:
        """Wait until a save that has begun is committed or given up; all ranks together.

        Returns:
            whether nothing failed.
        """
        if self._snapshot is not None:
            self._snapshot.before_update()
        waiting = self._save is not None
        if not any_rank(waiting):
            return True
        begun = time.monotonic()
        save, good = self._save, True
        if save is not None and save.thread is not None:
            save.thread.join()
        if not self._sound and any_rank(save is not None and not save.committing):
            self._drop("its weights may be ruined")
            return False
        written = not (save is not None and not save.committing and save.error is not None)
        if not all_ranks(written):
            unsound = any_rank(save is not None and save.unsound is not None)
            self._drop("the state of a rank is not finite" if unsound else "a rank could not write it")
            return False
        if save is not None and dist.get_rank() == 0:
            if not save.committing:
                self._commit(save)
            save.stall_s += time.monotonic() - begun
            good = self._conclude()
        self._save = None
        return all_ranks(good)

    def release(self) -> None:
        """Let go of the engine, after `finish`; another one may be saved then."""
        assert self._save is None, "a save has begun"
        if self._snapshot is not None:
            self._snapshot.release()

    def leave_suspect(self, last_update: int) -> str:
        self.finish()  # what is being committed is from before, and what is not proven is given up
        return super().leave_suspect(last_update)

    # One save, on its way.

    def _has_room(self, save: _Save) -> bool:
        """Whether the file system has room, after letting go of what is expendable; by rank 0."""
        needed, good = save.bytes + SPARE_BYTES, save.manifest["train_state"]["good_probe"]
        for path in on_disk.expendable(self.folder, 1, self.settings.keep_every_steps, good_until=good):
            if shutil.disk_usage(self.folder).free >= needed:
                break
            on_disk.remove(path)
            self._report("checkpoint_removed", save, f"{path.name} removed early, to make room for step {save.step:,}")
        return shutil.disk_usage(self.folder).free >= needed

    def _write(self, save: _Save, rank: int) -> None:
        try:
            assert self._snapshot is not None
            self._snapshot.wait()
            reached("copied")
            save.unsound = not_finite(save.files)
            if save.unsound is not None:
                raise UserError(f"{save.unsound} is not finite")
            facts = write_files(save.files, save.partial)
            reached("written")
            assert save.share is not None
            write_json(save.partial / _list_of(rank), {"files": facts, "fingerprints": save.share.counted()})
            flush_folder(save.partial)
            reached("listed")
        except BaseException as error:
            save.error = error

    def _commit(self, save: _Save) -> None:
        """By rank 0, when all ranks have written."""
        try:
            partial, final = save.partial, save.partial.with_name(on_disk.checkpoint_name(save.step))
            lists = [load_json(path) for path in sorted(partial.glob(_list_of("*")))]
            assert len(lists) == save.manifest["topology"]["world_size"], f"{partial} lacks the lists of some ranks"
            assert save.share is not None
            added = {
                FINGERPRINTS: packed(
                    added_up(save.share.names, [of["fingerprints"] for of in lists]), save.share.dtype
                ),
                "time": time.time(),
                "files": {name: facts for of in lists for name, facts in of["files"].items()},
            }
            write_json(partial / on_disk.MANIFEST, {**save.manifest, **added})
            if save.keep is not None:
                write_text(partial / on_disk.KEEP, save.keep + "\n")
            reached("manifest")
            rename_folder(partial, final)
            reached("renamed")
            write_text(self.folder / "latest", final.name)
            reached("latest")
            # One that no step has proven yet is not counted among the last: should it be ruined, they are all there.
            keep_last, keep_every = self.settings.keep_last + (not save.proven), self.settings.keep_every_steps
            good = save.manifest["train_state"]["good_probe"]
            for old in on_disk.expendable(self.folder, keep_last, keep_every, good_until=good, spare=final):
                on_disk.remove(old)
            for script in ("zero_to_fp32.py", "zero_to_torch.py"):  # of no use under AutoEP; recipe/export.py is
                (self.folder / script).unlink(missing_ok=True)
        except BaseException as error:
            save.error = error

    def _conclude(self) -> bool:
        """On rank 0, after the commit: say what became of it."""
        save, self._save = self._save, None
        assert save is not None
        if save.error is not None:
            self._save = save
            self._drop("it could not be committed")
            return False
        self.took_s = took = time.monotonic() - save.begun
        self._report(
            "checkpoint",
            save,
            f"checkpoint {self.folder / on_disk.checkpoint_name(save.step)}, {save.bytes / 2**20:,.0f} MiB in {took:.1f} s, "
            f"training waited {save.stall_s:.2f} s",
            bytes=save.bytes,
            took_s=took,
            stall_s=save.stall_s,
        )
        return True

    def _drop(self, why: str) -> None:
        """Give a save up, on all ranks; training goes on with the checkpoints there are."""
        save, self._save = self._save, None
        if save is None:
            return
        if save.error is not None:
            why = f"{why}: {save.error}"
        self._given_up = why
        if dist.get_rank() == 0:
            shutil.rmtree(save.partial, ignore_errors=True)
            self._report("checkpoint_failed", save, f"no checkpoint of step {save.step:,}: {why}")

    def _report(self, event: str, save: _Save, message: str, **more: Any) -> None:
        self._events.append({"event": event, "step": save.step, "message": message, **more})
