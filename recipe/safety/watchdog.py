"""Ends a job that makes no progress, and says which ranks hold it up.

A thread beside the training. Every rank that sees itself stuck prints the stacks of all its Python threads; the first
of those that still live compares the heartbeats and names the ranks that do not beat (killed, stopped, a dead host)
and, if all beat, those that are behind the others. Then they leave with the code that lets a supervisor start again.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from recipe.base.ranks import RESTART, host_name, launched_world_size, machine_name, rank
from recipe.base.settings import Watch
from recipe.run.folder import RunFolder
from recipe.run.heartbeats import Heartbeat, read_heartbeats, state_of_process, write_heartbeat
from recipe.run.records import failure_files

SAYING_S = 30.0  # that the files of a file system that does not answer may take, before the process ends all the same


@dataclass
class Progress:
    """Where the training of this rank is; the loop says so, the watchdog looks."""

    step: int = 0
    phase: str = "starting"
    number: int = 0
    run_phase: int = 0  # of the run config's phases

    def enter(self, phase: str, step: int | None = None) -> None:
        if step is not None:
            self.step = step
        self.phase = phase
        self.number += 1


class Watchdog(threading.Thread):
    """See the module's text. A context in which it watches.

    Args:
        progress: of this rank, for those who tell of it.
    """

    def __init__(self, folder: RunFolder, settings: Watch, progress: Progress | None = None):
        super().__init__(name="watchdog", daemon=True)
        self.progress = progress or Progress()
        self._folder, self._settings = folder, settings
        self._stopped = threading.Event()
        self._beat = 0
        self._unwritten = False
        self._patience_s = settings.start_s
        folder.heartbeats.mkdir(parents=True, exist_ok=True)
        self._beat_once()

    def phase_begins(self, number: int) -> None:
        """A phase of the run builds its engine and compiles, which takes as long as a start may."""
        self._patience_s = self._settings.start_s
        self.progress.run_phase = number

    def first_step_is_done(self) -> None:
        """From now on progress is expected at the pace of steps."""
        self._patience_s = self._settings.no_progress_s
        self.progress.enter("between steps")

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        # A beat waits as long as the file system does, so beats have a thread of their own.
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()
        seen, since = self.progress.number, time.monotonic()
        while not self._stopped.wait(self._settings.heartbeat_s):
            now = time.monotonic()
            if self.progress.number != seen:
                seen, since = self.progress.number, now
            if now - since > self._patience_s:
                self._end_job(now - since)

    def _keep_beating(self) -> None:
        while not self._stopped.wait(self._settings.heartbeat_s):
            self._beat_once()

    def _end_job(self, waited_s: float) -> None:
        """Say what is known and end this process, whatever of the saying fails or does not return."""
        try:
            last_resort = threading.Timer(SAYING_S + 3 * self._settings.heartbeat_s, os._exit, (RESTART,))
            last_resort.daemon = True
            last_resort.start()
            for say in (self._print_stacks, self._write_stacks, lambda: self._name_culprits(waited_s)):
                with suppress(Exception):
                    say()
        finally:
            os._exit(RESTART)

    def _write_stacks(self) -> None:
        stacks = self._folder.stacks(rank())
        stacks.parent.mkdir(exist_ok=True)
        with open(stacks, "w", encoding="utf-8") as handle:
            faulthandler.dump_traceback(handle, all_threads=True)

    def _print_stacks(self) -> None:
        faulthandler.dump_traceback(sys.stderr, all_threads=True)

    def _name_culprits(self, waited_s: float) -> None:
        """The first of the ranks that still live speaks for all."""
        progress, folder = self.progress, self._folder
        before = read_heartbeats(folder.heartbeats, folder.attempt)
        for _ in range(2):  # all have then had the time for a beat
            self._stopped.wait(self._settings.heartbeat_s)
            self._beat_once()
        after = read_heartbeats(folder.heartbeats, folder.attempt)
        beating = [number for number in after if number in before and after[number].beat > before[number].beat]
        if rank() != min(beating, default=rank()):
            self._stopped.wait(self._settings.heartbeat_s)  # the first speaks before the launcher ends all
            return
        ended = _ranks_with_a_record(folder)  # they are silent since they have ended, and said why
        unknown = set(range(launched_world_size() or 1)) - before.keys() - after.keys() - ended - {rank()}
        before, after = ({n: beat for n, beat in beats.items() if n not in ended} for beats in (before, after))
        culprits, message = who_holds_up(before, after, unknown)
        if ended and not culprits:
            message = f"rank {', '.join(map(str, sorted(ended)[:8]))} had ended before"
        message = (
            f"no progress for {waited_s:.0f} s in step {progress.step:,} ({progress.phase}): {message}; "
            f"stacks are in {folder.stacks(rank()).parent}"
        )
        with suppress(OSError, ValueError):  # a closed or broken standard error
            print(f"error: {message}", file=sys.stderr, flush=True)
        for culprit in culprits:
            with suppress(OSError):
                folder.record_failure("hang", message, rank=culprit.rank, host=culprit.host, step=progress.step)
        if culprits:
            return
        # The others leave without a word, which must not make them those that are waited for.
        hosts = {rank(): host_name()} | {number: beat.host for number, beat in after.items()}
        for number, host in hosts.items():
            with suppress(OSError):
                folder.record_failure("hang", message, rank=number, host=host, step=progress.step, witness=True)

    def _beat_once(self) -> None:
        """A beat that cannot be written is said once: what it is there for is to end the job, which needs no file."""
        try:
            self._write()
        except OSError as error:
            if not self._unwritten:
                self._unwritten = True
                with suppress(OSError, ValueError):
                    print(f"rank {rank()} cannot write its heartbeat: {error}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        self._beat += 1
        progress = self.progress
        write_heartbeat(
            self._folder.heartbeats,
            Heartbeat(
                rank=rank(),
                host=host_name(),
                pid=os.getpid(),
                attempt=self._folder.attempt,
                step=progress.step,
                phase=progress.phase,
                place=progress.number,
                beat=self._beat,
                machine=machine_name(),
            ),
        )


def _ranks_with_a_record(folder: RunFolder) -> set[int]:
    """Ranks of this attempt of which is known how they ended."""
    return set(failure_files(folder.path, folder.attempt))


def who_holds_up(
    before: dict[int, Heartbeat], after: dict[int, Heartbeat], unknown: Collection[int] = ()
) -> tuple[list[Heartbeat], str]:
    """The ranks that a stuck job waits for, from two readings of the heartbeats, and what to say of them.

    Args:
        unknown: ranks without a heartbeat, and so without a host that could be blamed.
    """
    silent = [
        after[number] for number in sorted(after) if number in before and after[number].beat == before[number].beat
    ]
    if silent or unknown:
        first = ", ".join(str(number) for number in sorted(unknown)[:8])
        messages = [f"no heartbeat of this start from rank {first}"] if unknown else []
        return silent, "; ".join([*messages, *(_silent(beat) for beat in silent[:8])])
    furthest = max((beat.place for beat in after.values()), default=0)
    behind = [after[number] for number in sorted(after) if after[number].place < furthest]
    if behind:
        where = "; ".join(f"rank {b.rank} on {b.where} is in step {b.step:,} ({b.phase})" for b in behind[:8])
        return behind, f"{where}, the others are further"
    return [], "all ranks beat and are at the same place: a collective that does not end, look at the network"


def _silent(beat: Heartbeat) -> str:
    here = beat.host == host_name()
    known = f", its process {beat.pid} is {state_of_process(beat.pid) or 'gone'}" if here else ""
    return f"rank {beat.rank} on {beat.where} has no heartbeat{known}, last seen in step {beat.step:,} ({beat.phase})"
